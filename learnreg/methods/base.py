"""``Method``: from a pair of images to a ``Registration``."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.optimization import LevelHistory
from learnreg.transforms import Sampled, Transform
from learnreg.typing import PathLike, StepCallback
from learnreg.warping import warp


@dataclass(frozen=True, eq=False)
class Registration:
    """Result of registering one pair.

    Args:
        transform: Points of the fixed space to points of the moving space, mm LPS.
        fixed: The reference, as given.
        moving: The image that was aligned, as given.
        initial: Initial transform (an alignment of centers, for example), or ``None``.
        history: Losses of each level of each iterative stage.
        seconds: Wall time of the registration, without reading, writing and start-up.
        peak_bytes: Peak memory besides the images; ``None`` if unknown.
    """

    transform: Transform
    fixed: Image
    moving: Image
    initial: Transform | None = None
    history: tuple[LevelHistory, ...] = ()
    seconds: float = 0.0
    peak_bytes: int | None = None

    @cached_property
    def sampled(self) -> Sampled:
        """The transform with its displacement on the fixed grid, which is computed once."""
        return Sampled(self.transform, self.fixed.grid)

    @cached_property
    def warped(self) -> Image:
        """The moving image on the fixed grid, its intensities as given; labels by nearest neighbor."""
        return warp(self.moving, self.sampled, self.fixed.grid)

    def save_transform(self, path: PathLike) -> None:
        """Write the transform for ITK, ANTs and 3D Slicer; see :func:`learnreg.transforms.write_transform`."""
        from learnreg.transforms.itk import write_transform

        write_transform(self.sampled, self.fixed.grid, path)


class Method(nn.Module):
    """Registration of one pair of any shape, spacing and orientation: ``(fixed, moving) -> Registration``."""

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
            initial: Initial transform, from the fixed to the moving space, instead of the method's own.
            on_step: Called with the number of iterations done, for progress bars.

        Returns:
            The transform and its history.

        Raises:
            InputError: The images differ in dimension or channels, or one is constant.
        """

    @property
    def iterations(self) -> int:
        """Maximum number of iterations, for progress bars; 0 without iterations."""
        return 0


def check_pair(fixed: Image, moving: Image) -> None:
    """Raise ``InputError`` for a pair that no method can register."""
    if fixed.ndim != moving.ndim:
        raise InputError(
            f"The fixed image is {fixed.ndim}-D and the moving image is {moving.ndim}-D; "
            "register images of one dimension."
        )
    if fixed.batch_size != 1 or moving.batch_size != 1:
        raise InputError(f"A method registers one pair, got batches of {fixed.batch_size} and {moving.batch_size}.")
    if fixed.data.shape[1] != moving.data.shape[1]:
        raise InputError(
            f"The images have {fixed.data.shape[1]} and {moving.data.shape[1]} channels; give as many in both."
        )
