"""``unstacked_transforms``: the transforms of a batch, one by one."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from learnreg.errors import InputTypeError
from learnreg.grid import Grid
from learnreg.transforms.base import Transform
from learnreg.transforms.lattice import Basis


def unstacked_transforms(transforms: Transform, count: int) -> list[Transform]:
    """Return the transforms of a batch, each as a batch of one.

    Args:
        transforms: A dataclass whose tensors have the batch first, as all transforms of learnreg are.
        count: Size of the batch; parts with a batch of 1 belong to all.

    Raises:
        InputTypeError: The transform, or a part of it, is not a dataclass.

    Example:
        >>> shifts = learnreg.Affine.translation(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
        >>> [shift(torch.zeros(1, 1, 2)).flatten().tolist() for shift in unstacked_transforms(shifts, 2)]
        [[1.0, 0.0], [2.0, 0.0]]
    """
    return [_member(transforms, k) for k in range(count)]


def _member(value: Any, index: int) -> Any:
    if isinstance(value, Tensor):
        return value[index : index + 1] if value.shape[0] > 1 else value
    if isinstance(value, Grid):
        return Grid(value.shape, _member(value.affine, index))
    if isinstance(value, tuple):
        return tuple(_member(part, index) for part in value)
    if isinstance(value, Basis):
        return None  # it is of the whole batch, and is found again
    if not isinstance(value, Transform):
        return value
    if not is_dataclass(value):
        raise InputTypeError(
            f"A {type(value).__name__} cannot be taken apart; make it a dataclass, or use batches of 1."
        )
    return replace(value, **{field.name: _member(getattr(value, field.name), index) for field in fields(value)})
