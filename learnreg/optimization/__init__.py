"""The classical solver: parametrizations, the descent loop, and stages from coarse to fine."""

from learnreg.optimization.dense import CompositiveParametrization, DenseParametrization
from learnreg.optimization.descent import Descent, descend
from learnreg.optimization.features import IntensityAndGradient, SelfSimilarity
from learnreg.optimization.flows import ShootingParametrization, TimeVaryingParametrization, shoot
from learnreg.optimization.freeform import BSplineParametrization, KernelParametrization
from learnreg.optimization.linear import LinearParametrization
from learnreg.optimization.parametrization import Parametrization, ParametrizationFactory
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
from learnreg.optimization.symmetric import SymmetricParametrization

__all__ = [
    "BSplineParametrization",
    "CenterOfMass",
    "CompositiveParametrization",
    "DenseParametrization",
    "Descent",
    "FieldStage",
    "IntensityAndGradient",
    "IterativeStage",
    "KernelParametrization",
    "LevelHistory",
    "LinearParametrization",
    "LinearStage",
    "Parametrization",
    "ParametrizationFactory",
    "SelfSimilarity",
    "ShootingParametrization",
    "Stage",
    "StageResult",
    "SymmetricParametrization",
    "TimeVaryingParametrization",
    "descend",
    "run_stages",
    "shoot",
]
