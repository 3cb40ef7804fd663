"""The classical solver: parametrizations, the descent loop, and stages from coarse to fine."""

from learnreg.optimization.descent import Descent, descend
from learnreg.optimization.features import IntensityAndGradient
from learnreg.optimization.parametrization import FieldParametrization, LinearParametrization, Parametrization
from learnreg.optimization.stages import (
    CenterOfMass,
    FieldStage,
    IterativeStage,
    LevelHistory,
    LinearStage,
    Stage,
    StageResult,
    run_stages,
)

__all__ = [
    "CenterOfMass",
    "Descent",
    "FieldParametrization",
    "FieldStage",
    "IntensityAndGradient",
    "IterativeStage",
    "LevelHistory",
    "LinearParametrization",
    "LinearStage",
    "Parametrization",
    "Stage",
    "StageResult",
    "descend",
    "run_stages",
]
