"""Unrolled optimization: a network whose layers are steps of an optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.networks.base import Network
from learnreg.networks.blocks import FieldHead, convolution
from learnreg.networks.units import per_spacing, voxels_to_mm
from learnreg.sampling import resize
from learnreg.similarity.base import Comparison, Similarity
from learnreg.transforms import Velocity
from learnreg.typing import FieldTensor
from learnreg.warping import warp


class Unrolled(Network):
    """Network that descends on a similarity with learned updates of a velocity.

    Each step computes the gradient of the similarity with respect to the velocity. A small network predicts the update
    from this gradient, the velocity and both images. Since the gradient comes from the images at hand, the network also
    gets useful updates for an anatomy that it was not trained on. Training treats the gradient as a constant input: it
    does not differentiate it a second time.

    Args:
        similarity: Similarity to descend on; lower is better.
        ndim: 2 or 3.
        width: Channels of the network that predicts updates; the steps of a level share its weights.
        factors: Spacing of the velocity in voxels, coarse to fine.
        iterations: Number of steps per level.
        in_channels: Channels of one image.
        steps: Number of squarings of the velocity.

    Raises:
        InputError: ``ndim`` is not 2 or 3, or ``factors`` and ``iterations`` differ in length or are empty.

    Source:
        Qiu et al., Embedding gradient-based optimization in image registration networks, MICCAI 2022; Adler and Öktem,
        Solving ill-posed inverse problems using iterative deep neural networks, 2017.

    Example:
        >>> network = Unrolled(learnreg.similarity.MSE(), 2, width=4, factors=(4, 2), iterations=(1, 1))
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> network(image, image).grid.shape  # a velocity at half resolution
        (8, 8)
    """

    def __init__(
        self,
        similarity: Similarity,
        ndim: int = 3,
        *,
        width: int = 24,
        factors: Sequence[int] = (8, 4, 2),
        iterations: Sequence[int] = (2, 2, 2),
        in_channels: int = 1,
        steps: int = 4,
    ) -> None:
        super().__init__()
        if len(factors) != len(iterations) or not factors or ndim not in (2, 3):
            raise InputError(
                f"Unrolled needs ndim 2 or 3, and as many iterations as factors, at least one; got ndim={ndim}, "
                f"iterations={list(iterations)} and factors={list(factors)}."
            )
        self.similarity = similarity
        self.ndim, self.in_channels, self.steps = ndim, in_channels, steps
        self.factors, self.iterations = tuple(int(f) for f in factors), tuple(int(n) for n in iterations)
        self.updates = nn.ModuleList(
            nn.Sequential(
                convolution(ndim, 2 * ndim + 3 * in_channels, width),
                convolution(ndim, width, width),
                FieldHead(ndim, width),
            )
            for _ in factors
        )

    def forward(self, fixed: Image, moving: Image) -> Velocity:
        """Predict the transform of a pair; see :meth:`Network.forward`."""
        self.check(fixed, moving)
        velocity = fixed.data.new_zeros(len(fixed.data), self.ndim, *[1] * self.ndim, dtype=fixed.grid.dtype)
        for factor, iterations, update in zip(self.factors, self.iterations, self.updates, strict=True):
            grid = fixed.grid.coarsened(factor, smallest=4)
            velocity = resize(velocity, grid.shape)
            level = fixed.grid.coarsened(max(1, factor // 2), smallest=8)
            target, source = (Image(resize(image.data, level.shape), level) for image in (fixed, moving))
            compare = self.similarity.prepare(target.data)
            for _ in range(iterations):
                velocity = velocity + self._update(velocity, grid, target, source, update, compare)
        return Velocity(velocity, grid, self.steps)

    def _update(
        self,
        velocity: FieldTensor,
        grid: Grid,
        fixed: Image,
        moving: Image,
        update: nn.Module,
        compare: Comparison,
    ) -> Tensor:
        """Predict the update of the velocity for one step, mm."""
        with torch.enable_grad():
            here = velocity.detach().requires_grad_()
            warped = warp(moving, Velocity(here, grid, self.steps), fixed.grid)
            (gradient,) = torch.autograd.grad(compare(warped.data), here)
        # The size of a gradient depends on the similarity and the images; only its pattern is given to the network.
        dims = list(range(1, gradient.ndim))
        gradient = gradient / gradient.square().mean(dims, keepdim=True).sqrt().clamp(min=1e-12)
        seen = torch.cat([fixed.data, warped.data.detach(), fixed.data - warped.data.detach()], dim=1)
        parts = [-gradient, per_spacing(velocity, grid), resize(seen, grid.shape)]
        voxels = update(torch.cat(parts, dim=1))
        field: Tensor = voxels_to_mm(voxels, grid)[0]
        return field
