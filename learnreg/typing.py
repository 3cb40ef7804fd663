"""Shape vocabulary of the package, as jaxtyping aliases.

``B`` batch, ``C`` channels, ``D`` spatial dimensions (2 or 3), ``*grid`` the grid's shape in
array order ``(z, y, x)``, ``*P`` any shape of a set of points, ``F`` channels made of others,
``*lattice`` the shape of a grid of coefficients. Vectors are
``(x, y, z)``. ``#B`` is the batch of the other arguments, or 1 to share a value among it.

The tests check these annotations at every call.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, no_type_check

from jaxtyping import Float, Int, Shaped
from torch import Tensor

ImageTensor: TypeAlias = Float[Tensor, "B C *grid"]
FieldTensor: TypeAlias = Float[Tensor, "B D *grid"]
BroadcastImage: TypeAlias = Float[Tensor, "#B C *grid"]
BroadcastField: TypeAlias = Float[Tensor, "#B D *grid"]
BroadcastLabels: TypeAlias = Int[Tensor, "#B 1 *grid"]
CoefficientTensor: TypeAlias = Float[Tensor, "B D *lattice"]
FeatureTensor: TypeAlias = Float[Tensor, "B F *grid"]
ScalarTensor: TypeAlias = Float[Tensor, "B *grid"]
MaskTensor: TypeAlias = Shaped[Tensor, "B 1 *grid"]
WeightTensor: TypeAlias = Float[Tensor, "#B 1 *grid"]
LabelTensor: TypeAlias = Int[Tensor, "B 1 *grid"]
PointTensor: TypeAlias = Float[Tensor, "#B *P D"]
SampledTensor: TypeAlias = Float[Tensor, "#B C *P"]
SampledLabels: TypeAlias = Int[Tensor, "#B 1 *P"]
Scalar: TypeAlias = Float[Tensor, ""]

PathLike: TypeAlias = str | os.PathLike[str]
StepCallback: TypeAlias = Callable[[int], Any]

if TYPE_CHECKING:
    MatrixTensor: TypeAlias = Float[Tensor, "#B D+1 D+1"]
    AffineTensor: TypeAlias = MatrixTensor | Float[Tensor, "D+1 D+1"]
else:

    class _Homogeneous(type):
        """Binds ``D``, because jaxtyping evaluates ``D+1`` only after another argument has bound it."""

        @no_type_check  # a checked function binds names of its own
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, cls.square) and isinstance(value[..., 0, 1:], Shaped[Tensor, "... D"])

    class MatrixTensor(metaclass=_Homogeneous):
        """A batch of homogeneous matrices."""

        square = Float[Tensor, "#B 3 3"] | Float[Tensor, "#B 4 4"]

    class _OneMatrix(metaclass=_Homogeneous):
        """A homogeneous matrix."""

        square = Float[Tensor, "3 3"] | Float[Tensor, "4 4"]

    AffineTensor = MatrixTensor | _OneMatrix

__all__ = [
    "AffineTensor",
    "BroadcastField",
    "BroadcastImage",
    "BroadcastLabels",
    "CoefficientTensor",
    "FeatureTensor",
    "FieldTensor",
    "ImageTensor",
    "LabelTensor",
    "MaskTensor",
    "MatrixTensor",
    "PathLike",
    "PointTensor",
    "SampledLabels",
    "SampledTensor",
    "Scalar",
    "ScalarTensor",
    "StepCallback",
    "Tensor",
    "WeightTensor",
]
