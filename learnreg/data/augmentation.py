"""Random changes of an image that keep the registration task valid."""

from __future__ import annotations

import math

import torch
from torch import nn

from learnreg.data.synthesis import changed_intensities
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.orientation import Orientation
from learnreg.sampling import Padding, check_padding
from learnreg.transforms import Affine, BSpline, chain, spline_lattice
from learnreg.warping import warp


class RandomTransform(nn.Module):
    """Random affine map, smooth deformation and change of intensity.

    Args:
        degrees: Standard deviation of each rotation angle.
        scale: Standard deviation of the log scale of each axis.
        shift: Standard deviation of each translation, mm.
        bend: Standard deviation of each control point of a cubic B-spline, mm; 0 disables the deformation.
        spacing: Spacing of the control points, mm; folds are rare if ``bend`` is at most 0.15 of it.
        gamma: Standard deviation of the log exponent of intensities in [0, 1].
        bias: Largest log factor of a smooth multiplicative field.
        noise: Largest standard deviation of Gaussian noise; each image draws its own.
        probability: Probability that an image is changed.
        padding: Value outside of the moved image: ``"zeros"``, or its ``"border"`` continued.

    Raises:
        InputError: The padding is unknown.

    Source:
        Nothing folds if all control points move by less than 0.4 of the spacing: Choi and Lee, Injectivity conditions
        of 2D and 3D uniform cubic B-spline functions, Graphical Models 2000.
    """

    def __init__(  # noqa: PLR0913 - they are the lines of a config
        self,
        *,
        degrees: float = 5.0,
        scale: float = 0.05,
        shift: float = 1.5,
        bend: float = 0.0,
        spacing: float = 16.0,
        gamma: float = 0.15,
        bias: float = 0.0,
        noise: float = 0.0,
        probability: float = 1.0,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        check_padding(padding)
        self.degrees, self.scale, self.shift = float(degrees), float(scale), float(shift)
        self.bend, self.spacing = float(bend), float(spacing)
        self.gamma, self.bias, self.noise = float(gamma), float(bias), float(noise)
        self.probability, self.padding = float(probability), padding

    def forward(self, image: Image) -> Image:
        """Change one image with intensities in [0, 1]; the draw is from torch's generator."""
        if torch.rand(()) >= self.probability:
            return image
        ndim, device = image.ndim, image.data.device
        skew = torch.randn(ndim, ndim) * math.radians(self.degrees)
        sizes = torch.exp(self.scale * torch.randn(ndim))
        linear = torch.matrix_exp((skew - skew.T) / math.sqrt(2)) @ torch.diag(sizes)
        moved = (self.shift * torch.randn(1, ndim)).to(device)
        change = Affine.about(linear[None].to(device), moved, image.grid.center)
        bent = None
        if self.bend > 0:
            lattice = spline_lattice(image.grid, self.spacing)
            bent = BSpline((self.bend * torch.randn(1, ndim, *lattice.shape)).to(device), lattice)
        return changed_intensities(
            warp(image, chain(bent, change), image.grid, padding=self.padding),
            generator=torch.default_generator,
            bias=self.bias,
            gamma=self.gamma,
            noise=self.noise * float(torch.rand(())),
        )


def reoriented(image: Image, orientation: Orientation) -> Image:
    """Exchange and flip the axes of an image about its center, as if its header had another orientation.

    The samples stay as they are. Two images that are changed alike correspond as before.

    Args:
        image: On a grid along the axes of space.
        orientation: The exchange and the flips.

    Example:
        >>> image = learnreg.Image(torch.arange(6.0).reshape(1, 1, 2, 3), learnreg.Grid.regular((2, 3)))
        >>> reoriented(image, Orientation((1, 0), (False, True))).data[0, 0]
        tensor([[3., 0.],
                [4., 1.],
                [5., 2.]])
    """
    ndim, old = image.ndim, image.grid
    spacing = old.spacing[0].flip(0)[list(orientation.order)].flip(0).tolist()
    grid = Grid.regular([old.shape[axis] for axis in orientation.order], spacing, dtype=old.dtype).to(old.device)
    affine = grid.affine.repeat(len(old.affine), 1, 1)
    affine[:, :ndim, ndim] += old.center - grid.center
    grid = Grid(grid.shape, affine)
    landmarks = image.landmarks
    if landmarks is not None:
        center = old.center.unsqueeze(1)
        landmarks = (landmarks - center) @ orientation.matrix.to(old.affine).T + center
    mask, labels = (None if values is None else orientation(values) for values in (image.mask, image.labels))
    return Image(orientation(image.data), grid, mask, labels, landmarks, image.covariates)
