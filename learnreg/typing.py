"""Shape vocabulary of the package, as jaxtyping aliases; the tests check them at every call.

``B`` is the batch size, ``C`` and ``K`` are numbers of channels, ``D`` is the number of spatial dimensions (2 or 3),
``H`` is ``D + 1``, ``*grid`` is the shape of a grid in array order ``(z, y, x)``, and ``*P`` is the shape of a set of
points. ``#`` allows a size of 1 as well. Vectors are ``(x, y, z)``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Float, Int, Shaped
from torch import Tensor

ImageTensor: TypeAlias = Float[Tensor, "#B C *grid"]
FeatureTensor: TypeAlias = Float[Tensor, "#B K *grid"]
FieldTensor: TypeAlias = Float[Tensor, "#B D *grid"]
ScalarTensor: TypeAlias = Float[Tensor, "#B *grid"]
MaskTensor: TypeAlias = Shaped[Tensor, "#B 1 *grid"]
LabelTensor: TypeAlias = Int[Tensor, "#B 1 *grid"]
PointLabelTensor: TypeAlias = Int[Tensor, "#B 1 *P"]
PointTensor: TypeAlias = Float[Tensor, "#B *P D"]
MatrixTensor: TypeAlias = Float[Tensor, "#B H H"]
OneMatrix: TypeAlias = Float[Tensor, "H H"]
Scalar: TypeAlias = Float[Tensor, ""]

PathLike: TypeAlias = str | os.PathLike[str]
StepCallback: TypeAlias = Callable[[int], Any]

__all__ = [
    "FeatureTensor",
    "FieldTensor",
    "ImageTensor",
    "LabelTensor",
    "MaskTensor",
    "MatrixTensor",
    "OneMatrix",
    "PathLike",
    "PointLabelTensor",
    "PointTensor",
    "Scalar",
    "ScalarTensor",
    "StepCallback",
    "Tensor",
]
