"""``Method``: registers a pair of images; ``Registration``: its result."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from learnreg.caching import UncachedState
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image, background
from learnreg.optimization import LandmarkStart, LevelHistory
from learnreg.supervision import LandmarkDistance
from learnreg.transforms import Sampled, Transform
from learnreg.transforms.in_plane import is_slice
from learnreg.typing import PathLike, StepCallback
from learnreg.warping import warp

PROBES = 16  # samples along an axis that tell roughly where a transform maps to


@dataclass(frozen=True, eq=False)
class Registration(UncachedState):
    """Result of registering one pair.

    Args:
        transform: Points of the fixed space to points of the moving space, mm LPS.
        fixed: The reference, as given.
        moving: The image that was aligned, as given.
        initial: Transform that the method started from, for example an alignment of centers; ``None`` is the identity.
            ``transform`` includes it.
        history: Losses of each level of each iterative stage.
        seconds: Wall time of the registration, without reading, writing and start-up.
        peak_bytes: Peak memory, without the images; ``None`` if unknown.
        guided: Whether the landmarks of the images guided the method; their distance then says nothing of its accuracy.

    Example:
        >>> grid = learnreg.Grid.regular((8, 8))
        >>> fixed, moving = learnreg.Image(torch.zeros(1, 1, 8, 8), grid), learnreg.Image(torch.rand(1, 1, 8, 8), grid)
        >>> result = Registration(learnreg.Affine.translation([1.0, 0.0]), fixed, moving)
        >>> torch.allclose(result.warped.data[..., :-1], moving.data[..., 1:], atol=1e-5)
        True
    """

    transform: Transform
    fixed: Image
    moving: Image
    initial: Transform | None = None
    history: tuple[LevelHistory, ...] = ()
    seconds: float = 0.0
    peak_bytes: int | None = None
    guided: bool = False

    def __repr__(self) -> str:
        parts = ", ".join(type(part).__name__ for part in Sampled(self.transform, self.fixed.grid).parts())
        sizes = (" x ".join(map(str, image.grid.shape[::-1])) for image in (self.fixed, self.moving))
        return f"Registration({parts}; {' to '.join(sizes)} voxels, {self.seconds:.2f} s)"

    def _repr_html_(self) -> str:
        """Show the images before and after in a notebook."""
        from learnreg.methods.contrast import SAME, contrast_agreement
        from learnreg.reporting.figures import figure_html, registration_figure

        same = contrast_agreement(self.fixed, self.moving, self.sampled) >= SAME
        figure = registration_figure(self.fixed, self.moving, self.sampled, initial=self.initial, same_contrast=same)
        return figure_html(figure, repr(self))

    @cached_property
    def sampled(self) -> Sampled:
        """The transform with its displacement on the fixed grid, which is computed once."""
        return Sampled(self.transform, self.fixed.grid)

    @cached_property
    def warped(self) -> Image:
        """The moving image on the fixed grid, in its original intensity scale; labels by nearest neighbor.

        Beyond the moving image lies its :func:`learnreg.image.background`.
        """
        return warp(self.moving, self.sampled, self.fixed.grid, fill=background(self.moving))

    def save_transform(self, path: PathLike) -> None:
        """Write the transform for ITK, ANTs and 3D Slicer; see :func:`learnreg.transforms.write_transform`."""
        from learnreg.transforms.files import write_transform

        write_transform(self.sampled, self.fixed.grid, path)


class Method(nn.Module):
    """Module that registers a pair of images of any shape, spacing and orientation.

    Derive a class and override :meth:`forward`, and :attr:`iterations` if it iterates.

    Example:
        >>> method = learnreg.load_method("rigid")
        >>> isinstance(method, Method)
        True
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> type(method(image, image)).__name__
        'Registration'
    """

    @abstractmethod
    def forward(
        self,
        fixed: Image,
        moving: Image,
        *,
        initial: Transform | None = None,
        on_step: StepCallback | None = None,
    ) -> Registration:
        """Register a pair.

        Args:
            fixed: The reference; any intensity scale.
            moving: The image to align.
            initial: Transform to start from, fixed to moving; stages that find a start are left out. ``None`` lets the
                method choose.
            on_step: Called with the number of iterations since its last call, for progress bars.

        Returns:
            The transform, with the images and the losses.

        Raises:
            InputError: The images differ in dimension or channels, are batches of several images, or one is constant;
                or ``initial`` does not fit them.
        """

    @property
    def iterations(self) -> int:
        """Maximum number of iterations, for progress bars; 0 without iterations."""
        return 0

    def limited(self, iterations: int) -> Method:
        """Return a copy of this method with another number of iterations, to refine the answer of a network.

        Args:
            iterations: Maximum number of iterations.

        Raises:
            InputError: The method has no number of iterations to change.
        """
        raise InputError(f"{type(self).__name__} cannot refine; use an IterativeMethod, or a ByContrast of two.")


def guided_by_landmarks(method: nn.Module, fixed: Image, moving: Image) -> bool:
    """Return whether a method uses the landmarks of a pair: to start from, or as a term of its objective.

    Example:
        >>> grid, corner = learnreg.Grid.regular((8, 8)), torch.zeros(1, 1, 2)
        >>> image = learnreg.Image(torch.rand(1, 1, 8, 8), grid, landmarks=corner)
        >>> [guided_by_landmarks(learnreg.load_method(name), image, image) for name in ("lung", "affine")]
        [True, False]
    """
    if fixed.landmarks is None or moving.landmarks is None:
        return False
    return any(isinstance(part, (LandmarkDistance, LandmarkStart)) for part in method.modules())


def check_pair(fixed: Image, moving: Image, initial: Transform | None = None) -> None:
    """Raise ``InputError`` for a pair, or an initial transform, with which no method can register."""
    if fixed.ndim != moving.ndim:
        raise InputError(
            f"The fixed image is {fixed.ndim}-D and the moving image is {moving.ndim}-D; "
            "both must have the same dimension."
        )
    if fixed.batch_size != 1 or moving.batch_size != 1:
        raise InputError(
            f"A method registers one pair, got batches of {fixed.batch_size} and {moving.batch_size}; register the "
            "pairs one by one."
        )
    if fixed.data.shape[1] != moving.data.shape[1]:
        raise InputError(
            f"The fixed image has {fixed.data.shape[1]} and the moving image has {moving.data.shape[1]} channels; both "
            "must have the same number."
        )
    for image in (fixed, moving):
        is_slice(image.grid)  # refuses a line
    if initial is not None:
        _check_initial(initial, fixed, moving)


def _check_initial(initial: Transform, fixed: Image, moving: Image) -> None:
    if initial.ndim != fixed.ndim:
        raise InputError(f"The initial transform is {initial.ndim}-D and the images are {fixed.ndim}-D.")
    grid = probed(fixed.grid)
    with torch.no_grad():
        mapped = initial.map_grid(grid)
    offsets = (mapped - mapped.flatten(1, -2).mean(1).reshape(-1, *[1] * grid.ndim, grid.ndim)).flatten(0, -2)
    if not bool(mapped.isfinite().all()):
        raise InputError("The initial transform is not finite on the fixed image; check the file that it comes from.")
    spread = torch.linalg.svdvals(offsets.double())
    if float(spread[-1]) < 1e-3 * float(spread[0]) and min(grid.shape) > 1:
        raise InputError(
            "The initial transform is singular: it maps the fixed image into a plane, a line or a point. Check its "
            "matrix."
        )
    if not overlap(initial, fixed, moving):
        away = float((mapped.flatten(1, -2).mean(1) - moving.grid.center.to(mapped)).norm(dim=-1).max())
        raise InputError(
            "The initial transform maps no part of the fixed image into the moving image (the centers end "
            f"{away:.0f} mm apart). Check that it belongs to these images and maps from fixed to moving, not back."
        )


@torch.no_grad()
def overlap(transform: Transform, fixed: Image, moving: Image) -> bool:
    """Return whether a transform maps a sample of the fixed image into the moving image.

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 8, 8), learnreg.Grid.regular((8, 8)))
        >>> overlap(learnreg.Affine.identity(2), image, image)
        True
    """
    grids = probed(fixed.grid), fixed.grid  # all samples, because the moving image can be tiny
    return any(_meets(transform.map_grid(grid), moving) for grid in grids)


def probed(grid: Grid) -> Grid:
    """Return a coarse sampling of the field of view of a grid."""
    return grid.resized([min(n, PROBES) for n in grid.shape])


def _meets(points: Tensor, image: Image) -> bool:
    """Return whether one of the points lies within the image."""
    coordinates = image.grid.to(points.dtype).to_normalized(points.to(image.grid.device))
    return bool((coordinates.abs() <= 1).all(-1).any())
