"""A dictionary transform of MONAI that registers two images."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import MetaKeys, SpaceKeys

from learnreg.image import Image
from learnreg.integrations.arrays import array_from_image, image_from_array, warped_labels
from learnreg.methods import Method, register
from learnreg.methods.start import Initial


class RegisterClassicald(MapTransform):
    """Register the moving to the fixed image, and bring the moving image and its labels onto the fixed grid.

    Affines are honored, in RAS (MONAI's default) and in LPS. A tensor without one has voxels of 1 mm.

    Args:
        fixed: Key of the fixed image, which stays as it is.
        moving: Key of the moving image, which is replaced.
        labels: Keys of label maps on the grid of the moving image, which are replaced by nearest neighbor.
        method: See :func:`learnreg.register`.
        initial: See :func:`learnreg.register`.
        device: Device that computes.
        result: Key under which the :class:`learnreg.methods.Registration` is stored; ``None`` stores none.

    Example:
        >>> blob = torch.zeros(1, 12, 12, 12)
        >>> blob[:, 3:8, 4:8, 5:8] = 1
        >>> data = {"fixed": blob, "moving": blob.roll(2, 1)}
        >>> aligned = RegisterClassicald(method="rigid")(data)["moving"]
        >>> bool((aligned - blob).abs().mean() < 0.02)
        True
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
        super().__init__((fixed, moving, *labels))
        self.fixed, self.moving, self.labels = fixed, moving, tuple(labels)
        self.method, self.initial, self.device, self.result = method, initial, device, result

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the registered image and labels."""
        found = dict(data)
        fixed, moving = (_image(data[key], key) for key in (self.fixed, self.moving))
        result = register(fixed, moving, self.method, initial=self.initial, device=self.device, progress=False)
        found[self.moving] = _placed(array_from_image(result.warped.data), data[self.moving], data[self.fixed])
        for key in self.labels:
            found[key] = _placed(warped_labels(_image(data[key], key), result), data[key], data[self.fixed])
        return found if self.result is None else found | {self.result: result}


def _image(values: Any, key: str) -> Image:
    """Convert a tensor of MONAI."""
    tensor = values if isinstance(values, MetaTensor) else MetaTensor(torch.as_tensor(values))
    space = str(
        getattr(tensor.meta.get(MetaKeys.SPACE), "value", tensor.meta.get(MetaKeys.SPACE) or SpaceKeys.RAS.value)
    )
    return image_from_array(tensor.detach().cpu(), tensor.affine, space=space, name=key)


def _placed(array: torch.Tensor, own: Any, fixed: Any) -> torch.Tensor:
    """Return an array on the fixed grid, with the data type, device and metadata of what they replace."""
    like = torch.as_tensor(own)
    array = array.to(device=like.device, dtype=like.dtype)
    if not isinstance(fixed, MetaTensor):
        return array
    meta = dict(own.meta) if isinstance(own, MetaTensor) else {}
    meta = {key: value for key, value in meta.items() if key not in (MetaKeys.SPACE, MetaKeys.AFFINE)}
    if MetaKeys.SPACE in fixed.meta:
        meta[MetaKeys.SPACE] = fixed.meta[MetaKeys.SPACE]
    return MetaTensor(array, affine=fixed.affine, meta=meta)
