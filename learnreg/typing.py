"""Shape vocabulary of the package, as jaxtyping aliases; the tests check them at every call.

``B`` is the batch size, ``C`` and ``K`` are numbers of channels, ``D`` is the number of spatial dimensions (2 or 3),
``*grid`` is the shape of a grid in array order ``(z, y, x)``, ``*lattice`` that of a grid of coefficients, and ``*P``
is the shape of a set of points. ``#`` allows a size of 1 as well. Vectors are ``(x, y, z)``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, no_type_check

from jaxtyping import Float, Int, Shaped
from torch import Tensor

ImageTensor: TypeAlias = Float[Tensor, "B C *grid"]
FeatureTensor: TypeAlias = Float[Tensor, "B K *grid"]
FieldTensor: TypeAlias = Float[Tensor, "B D *grid"]
CoefficientTensor: TypeAlias = Float[Tensor, "B D *lattice"]
ScalarTensor: TypeAlias = Float[Tensor, "B *grid"]
MaskTensor: TypeAlias = Shaped[Tensor, "B 1 *grid"]
WeightTensor: TypeAlias = Float[Tensor, "#B 1 *grid"]
LabelTensor: TypeAlias = Int[Tensor, "B 1 *grid"]
BroadcastImage: TypeAlias = Float[Tensor, "#B C *grid"]
BroadcastField: TypeAlias = Float[Tensor, "#B D *grid"]
BroadcastLabels: TypeAlias = Int[Tensor, "#B 1 *grid"]
PointLabelTensor: TypeAlias = Int[Tensor, "#B 1 *P"]
PointTensor: TypeAlias = Float[Tensor, "#B *P D"]
SampledTensor: TypeAlias = Float[Tensor, "#B C *P"]
Scalar: TypeAlias = Float[Tensor, ""]

PathLike: TypeAlias = str | os.PathLike[str]
StepCallback: TypeAlias = Callable[[int], Any]

if TYPE_CHECKING:
    MatrixTensor: TypeAlias = Float[Tensor, "#B D+1 D+1"]
    OneMatrix: TypeAlias = Float[Tensor, "D+1 D+1"]
else:

    class _Homogeneous(type):
        """Binds ``D``, because jaxtyping evaluates ``D+1`` only after another argument has bound ``D``."""

        @no_type_check  # a checked function has bindings of its own
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, cls.square) and isinstance(value[..., 0, 1:], Shaped[Tensor, "... D"])

    class MatrixTensor(metaclass=_Homogeneous):
        """Homogeneous matrices, ``(B, D+1, D+1)``."""

        square = (Float[Tensor, "#B 3 3"], Float[Tensor, "#B 4 4"])

    class OneMatrix(metaclass=_Homogeneous):
        """One homogeneous matrix, ``(D+1, D+1)``."""

        square = (Float[Tensor, "3 3"], Float[Tensor, "4 4"])


__all__ = [
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
    "OneMatrix",
    "PathLike",
    "PointLabelTensor",
    "PointTensor",
    "SampledTensor",
    "Scalar",
    "ScalarTensor",
    "StepCallback",
    "Tensor",
    "WeightTensor",
]
