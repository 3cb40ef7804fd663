"""A transform of torchio's subjects that registers two of their images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from learnreg.image import Image
from learnreg.integrations.arrays import array_from_image, image_from_array, warped_labels
from learnreg.methods import Method, register
from learnreg.methods.start import Initial


class RegisterSubject:
    """Register the moving to the fixed image of a subject of torchio, alone or in ``torchio.Compose``.

    The moving image and its label maps are brought onto the grid of the fixed image.

    Args:
        fixed: Name of the fixed image, which stays as it is.
        moving: Name of the moving image, which is replaced.
        labels: Names of label maps on the grid of the moving image, which are replaced by nearest neighbor.
        method: See :func:`learnreg.register`.
        initial: See :func:`learnreg.register`.
        device: Device that computes.
        result: Name under which the :class:`learnreg.methods.Registration` is stored; ``None`` stores none.

    Example:
        >>> RegisterSubject(method="rigid").method
        'rigid'
    """

    def __init__(
        self,
        fixed: str = "fixed",
        moving: str = "moving",
        labels: Sequence[str] = (),
        *,
        method: str | Method | None = None,
        initial: Initial | None = None,
        device: str = "cpu",
        result: str | None = None,
    ) -> None:
        self.fixed, self.moving, self.labels = fixed, moving, tuple(labels)
        self.method, self.initial, self.device, self.result = method, initial, device, result

    def __call__(self, subject: Any) -> Any:
        """Return a copy of the subject with the registered image and labels."""
        found = copy.deepcopy(subject)
        fixed, moving = (_image(subject[name], name) for name in (self.fixed, self.moving))
        result = register(fixed, moving, self.method, initial=self.initial, device=self.device, progress=False)
        affine = subject[self.fixed].affine
        own = subject[self.moving].data
        found[self.moving].set_data(array_from_image(result.warped.data).to(own.dtype))
        found[self.moving].affine = affine
        for name in self.labels:
            moved = warped_labels(_image(subject[name], name), result)
            found[name].set_data(moved.to(subject[name].data.dtype))
            found[name].affine = affine
        if self.result is not None:
            found[self.result] = result
        return found


def _image(image: Any, name: str) -> Image:
    """Convert an image of torchio, whose affines lead to RAS."""
    return image_from_array(image.data, image.affine, name=name)
