"""Smoothing of fields: the regularization of demons and of compositive updates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.numerics import full_precision
from learnreg.separable import apply_separable, gaussian_matrix
from learnreg.typing import FieldTensor, ImageTensor


@full_precision
def gaussian_smoothing(field: FieldTensor, grid: Grid, sigma: float) -> FieldTensor:
    """Smooth a field by a Gaussian; the weights sum to 1 also at the border.

    Args:
        field: ``(B, D, *grid.shape)``.
        grid: Where it is sampled; one spacing for the batch.
        sigma: Standard deviation, mm; 0 leaves the field unchanged.

    Returns:
        ``(B, D, *grid.shape)``.

    Raises:
        InputError: ``sigma`` is negative.

    Source:
        Vercauteren et al., Diffeomorphic demons, NeuroImage 2009: fluid-like on the update, diffusion-like on the
        field.
    """
    if sigma < 0:
        raise InputError(f"gaussian_smoothing needs a sigma of at least 0 mm, got {sigma}.")
    if sigma == 0:
        return field
    spacing = grid.spacing[0].flip(0).tolist()
    return apply_separable(
        field, [gaussian_matrix(n, sigma / s, field) for n, s in zip(grid.shape, spacing, strict=True)]
    )


@full_precision
def graph_diffusion(
    field: FieldTensor,
    grid: Grid,
    image: ImageTensor,
    *,
    sigma: float,
    edge: float = 0.1,
    tolerance: float = 1e-4,
    iterations: int = 200,
) -> FieldTensor:
    """Smooth a field along the structures of an image, not across its edges: solve ``(I + sigma^2 / 2 L) v = u``.

    ``L`` is the Laplacian of the graph of neighboring voxels. An edge between ``x`` and ``y`` has the weight
    ``exp(-(I(x) - I(y))^2 / (2 edge^2)) / |x - y|^2``. The solution, by conjugate gradients, is one implicit step of
    diffusion over the time in which a Gaussian of ``sigma`` would act.

    Args:
        field: ``(B, D, *grid.shape)``.
        grid: Where it is sampled.
        image: ``(B, C, *grid.shape)``; its edges stop the smoothing.
        sigma: Reach of the smoothing inside a region, mm.
        edge: Difference of intensity that counts as an edge.
        tolerance: Norm of the residual, relative to that of ``field``.
        iterations: Maximum number of iterations.

    Returns:
        ``(B, D, *grid.shape)``.

    Raises:
        InputError: ``sigma`` is negative, or ``edge`` is not positive.

    Source:
        Perona and Malik, Scale-space and edge detection using anisotropic diffusion, IEEE TPAMI 1990; Santos-Ribeiro et
        al., Enhanced registration of lung CT by graph-based sliding, 2016; the regularizer of this name in AirLab.
        Differs in: one implicit step.
    """
    if sigma < 0 or edge <= 0:
        raise InputError(f"graph_diffusion needs sigma >= 0 and edge > 0, got sigma={sigma}, edge={edge}.")
    weights = _edge_weights(image.to(field.dtype), grid, edge)

    def system(v: Tensor) -> Tensor:
        return v + sigma**2 / 2 * _laplacian(v, weights)

    solution, residual = field, field - system(field)
    direction, square = residual, _squares(residual)
    enough = (tolerance**2 * _squares(field)).clamp(min=torch.finfo(field.dtype).tiny)
    for _ in range(iterations):
        if bool((square <= enough).all()):
            break
        image_of = system(direction)
        rate = square / (direction * image_of).flatten(2).sum(2).clamp(min=torch.finfo(field.dtype).tiny)
        solution = solution + _columns(rate, field) * direction
        residual = residual - _columns(rate, field) * image_of
        following = _squares(residual)
        direction = residual + _columns(following / square.clamp(min=torch.finfo(field.dtype).tiny), field) * direction
        square = following
    return solution


def _edge_weights(image: Tensor, grid: Grid, edge: float) -> list[Tensor]:
    """Return the weights ``(B, 1, *edges)`` of the graph's edges, per axis."""
    weights = []
    for axis, spacing in enumerate(grid.spacing.T.flip(0)):
        square = image.diff(dim=axis + 2).square().sum(1, keepdim=True)
        weights.append(torch.exp(-square / (2 * edge**2)) / spacing.reshape(-1, *([1] * (image.ndim - 1))) ** 2)
    return weights


def _laplacian(field: Tensor, weights: list[Tensor]) -> Tensor:
    """``sum_y w(x, y) (u(x) - u(y))``."""
    total = torch.zeros_like(field)
    for axis, weight in enumerate(weights):
        n = field.shape[axis + 2]
        if n > 1:
            flow = weight * field.diff(dim=axis + 2)
            total.narrow(axis + 2, 0, n - 1).sub_(flow)
            total.narrow(axis + 2, 1, n - 1).add_(flow)
    return total


def _squares(values: Tensor) -> Tensor:
    return values.square().flatten(2).sum(2)


def _columns(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(B, D)`` values to multiply a field."""
    return values.reshape(*values.shape, *([1] * (like.ndim - 2)))


class GaussianSmoothing(nn.Module):
    """Gaussian smoothing, ``(field, grid, image) -> field``; see :func:`gaussian_smoothing`. The image is ignored.

    Args:
        sigma: mm.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, field: FieldTensor, grid: Grid, image: ImageTensor | None = None) -> FieldTensor:
        return gaussian_smoothing(field, grid, self.sigma)


class GraphDiffusion(nn.Module):
    """Smoothing that stops at the edges of an image, ``(field, grid, image) -> field``; see :func:`graph_diffusion`.

    Args:
        sigma: mm.
        edge: Difference of intensity that counts as an edge.
    """

    def __init__(self, sigma: float, *, edge: float = 0.1) -> None:
        super().__init__()
        self.sigma, self.edge = sigma, edge

    def forward(self, field: FieldTensor, grid: Grid, image: ImageTensor) -> FieldTensor:
        return graph_diffusion(field, grid, image, sigma=self.sigma, edge=self.edge)
