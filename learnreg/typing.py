"""Shape vocabulary of the package, as jaxtyping aliases.

``B`` batch, ``C`` channels, ``D`` spatial dimensions (2 or 3), ``*grid`` the grid's shape in
array order ``(z, y, x)``, ``*P`` any shape of a set of points. Vectors are ``(x, y, z)``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Float, Int, Shaped
from torch import Tensor

ImageTensor: TypeAlias = Float[Tensor, "B C *grid"]
FieldTensor: TypeAlias = Float[Tensor, "B D *grid"]
ScalarTensor: TypeAlias = Float[Tensor, "B *grid"]
MaskTensor: TypeAlias = Shaped[Tensor, "B 1 *grid"]
LabelTensor: TypeAlias = Int[Tensor, "B 1 *grid"]
PointTensor: TypeAlias = Float[Tensor, "B *P D"]
MatrixTensor: TypeAlias = Float[Tensor, "B D+1 D+1"]
Scalar: TypeAlias = Float[Tensor, ""]

PathLike: TypeAlias = str | os.PathLike[str]
StepCallback: TypeAlias = Callable[[int], Any]

__all__ = [
    "FieldTensor",
    "ImageTensor",
    "LabelTensor",
    "MaskTensor",
    "MatrixTensor",
    "PathLike",
    "PointTensor",
    "Scalar",
    "ScalarTensor",
    "StepCallback",
    "Tensor",
]
