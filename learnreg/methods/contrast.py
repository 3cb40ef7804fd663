"""Choose a method by whether two images have the same contrast."""

from __future__ import annotations

import time

import torch

from learnreg.data.preprocessing import normalized, without_padding
from learnreg.errors import InputError, InputTypeError
from learnreg.image import Image
from learnreg.methods.base import Method, Registration, check_pair, overlap
from learnreg.numerics import full_precision
from learnreg.optimization import LevelHistory
from learnreg.optimization.iterative import at_level
from learnreg.similarity.masking import both_masks
from learnreg.similarity.windows import LocalAverage, local_moments
from learnreg.transforms import Affine, Transform
from learnreg.typing import StepCallback
from learnreg.warping import warp

SAME = 0.7  # measured: 0.82 to 1 for one contrast, below 0.55 for T1 with T2, MR with PD and CT with PET


def contrast_agreement(fixed: Image, moving: Image, transform: Transform, *, factor: float = 2.0) -> float:
    """Compute how well the local contrasts of a roughly aligned pair agree, see :func:`local_agreement`.

    Args:
        fixed: The reference; any intensity scale.
        moving: The image to align.
        transform: Points of the fixed space to points of the moving space, right to a few voxels.
        factor: Spacing of the comparison, as a multiple of the finest voxel spacing.

    Returns:
        A value in [-1, 1]; 0 if an image is constant.

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> negative = image.with_data(1 - image.data)
        >>> same = learnreg.Affine.identity(2)
        >>> round(contrast_agreement(image, image, same)), round(contrast_agreement(image, negative, same))
        (1, -1)
    """
    try:
        target, source = (
            at_level(normalized(without_padding(Image(image.data, image.grid, image.mask))), factor)
            for image in (fixed, moving)
        )
    except InputError:  # one is constant
        return 0.0
    with torch.no_grad():
        return local_agreement(target, warp(source, transform, target.grid))


@torch.no_grad()
@full_precision
def local_agreement(fixed: Image, warped: Image, *, window: int = 5, content: float = 0.1) -> float:
    """Compute the mean of the local correlations, divided by the mean of their absolute values.

    It is 1 where both images become brighter at the same places, -1 where one is the negative of the other. The global
    correlation cannot tell: T1 and T2 of one brain are correlated, since both are dark outside of it.

    Args:
        fixed: Intensities in [0, 1].
        warped: Intensities in [0, 1], on the same grid.
        window: Width of the windows, samples.
        content: Windows count whose centers are brighter than this in both images.

    Returns:
        A value in [-1, 1]; 0 if the images share no content.
    """
    used = both_masks(fixed.mask, warped.mask)
    counted = ((fixed.data > content) & (warped.data > content)).to(fixed.data.dtype).amin(1, keepdim=True)
    counted = counted if used is None else counted * used
    first, mean_f, var_f = local_moments(fixed.data, used, window, "box", 1)
    second, mean_w, var_w = local_moments(warped.data, used, window, "box", 1)
    covariance = LocalAverage(first, window, used)(first * second) - mean_f * mean_w
    correlation = covariance * ((var_f + 1e-3) * (var_w + 1e-3)).rsqrt() * counted
    size = float(correlation.abs().sum())
    return float(correlation.sum()) / size if size > 0 else 0.0


class ByContrast(Method):
    """Method that aligns a pair roughly, then continues with one of two methods, by :func:`contrast_agreement`.

    Args:
        start: Rough alignment that allows any contrast; ``None`` is for pairs that come with an initial transform, such
            as the answer of a network.
        same: Continues for images of the same contrast, such as two T1 images.
        other: Continues for images of different contrast, such as CT and MR.
        threshold: Lowest agreement of images of the same contrast.

    Raises:
        InputTypeError: An argument is not a :class:`learnreg.Method`.

    Example:
        >>> method = learnreg.load_method("deformable")
        >>> list(method.same.stages), list(method.other.stages)
        (['center', 'rotation', 'affine', 'deformation'], ['center', 'rotation', 'rigid', 'affine', 'deformation'])
    """

    def __init__(self, start: Method | None, same: Method, other: Method, *, threshold: float = SAME) -> None:
        super().__init__()
        for name, method in (("start", start), ("same", same), ("other", other)):
            if not isinstance(method, Method) and (method is not None or name != "start"):
                raise InputTypeError(f"ByContrast.{name} must be a learnreg.Method, got {type(method).__name__}.")
        self.start, self.same, self.other, self.threshold = start, same, other, float(threshold)

    @property
    def iterations(self) -> int:
        return self._before + max(self.same.iterations, self.other.iterations)

    @property
    def _before(self) -> int:
        return 0 if self.start is None else self.start.iterations

    def limited(self, iterations: int) -> ByContrast:
        """Return a copy of this method without its start, whose two methods have another number of iterations.

        Args:
            iterations: Maximum number of iterations.

        Raises:
            InputError: One of both methods has no number of iterations to change.
        """
        return ByContrast(None, self.same.limited(iterations), self.other.limited(iterations), threshold=self.threshold)

    def forward(
        self,
        fixed: Image,
        moving: Image,
        *,
        initial: Transform | None = None,
        on_step: StepCallback | None = None,
    ) -> Registration:
        check_pair(fixed, moving, initial)
        began = time.perf_counter()
        start: Transform | None = initial
        history: tuple[LevelHistory, ...] = ()
        if self.start is not None:
            rough = self.start(fixed, moving, initial=initial, on_step=on_step)
            start, history = rough.transform, rough.history
        seen = Affine.identity(fixed.ndim).to(fixed.grid.affine) if start is None else start
        method = self.same if contrast_agreement(fixed, moving, seen) >= self.threshold else self.other
        # A thin image can be lost by the start; the method then begins by itself.
        start = start if overlap(seen, fixed, moving) else initial
        result = method(fixed, moving, initial=start, on_step=on_step)
        if on_step is not None and method.iterations < max(self.same.iterations, self.other.iterations):
            on_step(self.iterations - self._before - method.iterations)
        seconds = time.perf_counter() - began
        return Registration(result.transform, fixed, moving, initial, (*history, *result.history), seconds)
