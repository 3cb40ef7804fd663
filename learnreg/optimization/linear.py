"""Translation, rigid motion, similarity and affine map as parametrizations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.optimization.parametrization import Parametrization
from learnreg.transforms import Affine
from learnreg.transforms.affine import LinearKind, linear_basis
from learnreg.typing import PointTensor


class LinearParametrization(Parametrization):
    """Translation, rigid motion, similarity or affine map about a center.

    ``x -> exp(G / radius) (x - center) + center + translation``. ``G`` is a skew matrix for a rotation, a skew matrix
    plus a multiple of the identity for a similarity, and any matrix for an affine map. Its entries are in mm: they are
    about the displacement at the distance ``radius`` from the center. So one learning rate fits all parameters.

    Args:
        center: ``(1, D)``, mm.
        radius: About half the size of the object, mm.
        kind: ``"translation"`` (2 free parameters in 2-D, 3 in 3-D), ``"rigid"`` (3 or 6), ``"similarity"`` (4 or 7) or
            ``"affine"`` (6 or 12).
        start: Affine map to start from; ``None`` is the identity.

    Raises:
        InputError: The kind is unknown, or ``start`` is not of this kind.

    Example:
        >>> rigid = LinearParametrization(torch.zeros(1, 3), 50.0, "rigid")
        >>> sum(p.numel() for p in rigid.parameters())
        6
        >>> rigid()(torch.zeros(1, 1, 3)).detach()
        tensor([[[0., 0., 0.]]])
    """

    def __init__(
        self, center: PointTensor, radius: float, kind: LinearKind = "affine", *, start: Affine | None = None
    ) -> None:
        super().__init__()
        ndim = center.shape[-1]
        self.kind, self.radius = kind, float(radius)
        basis = linear_basis(kind, ndim).to(center)
        self.center: Tensor
        self.basis: Tensor
        self.register_buffer("center", center)
        self.register_buffer("basis", basis)
        self.translation = nn.Parameter(torch.zeros_like(center))
        self.linear = nn.Parameter(center.new_zeros(1, len(basis)))
        if start is not None:
            self._start_from(start)

    def forward(self, fixed: Image | None = None, moving: Image | None = None) -> Affine:
        generator = torch.einsum("bk,kij->bij", self.linear / self.radius, self.basis)
        return Affine.about(torch.matrix_exp(generator), self.translation, self.center)

    def _start_from(self, start: Affine) -> None:
        ndim = self.center.shape[-1]
        linear = start.matrix[0, :ndim, :ndim].detach().double().cpu().numpy()
        from scipy.linalg import logm

        generator = logm(linear)
        if np.iscomplexobj(generator) and np.abs(generator.imag).max() > 1e-6:
            raise InputError(
                f"A {self.kind} search cannot start from a map that mirrors or rotates by 180 degrees: it has no real "
                "logarithm. Give the map as `initial`."
            )
        target = torch.from_numpy(np.real(generator)).reshape(-1)
        basis = self.basis.double().cpu().flatten(1).T
        weights = (
            torch.linalg.lstsq(basis, target.unsqueeze(1)).solution[:, 0] if basis.shape[1] else target.new_zeros(0)
        )
        if bool((basis @ weights - target).abs().max() > 1e-4):
            raise InputError(
                f"The start is not a {self.kind} map; choose a kind that includes it, or give it as `initial`."
            )
        with torch.no_grad():
            self.linear.copy_(self.radius * weights)
            self.translation.copy_(start(self.center.unsqueeze(1)).squeeze(1) - self.center)
