"""The classical solver: parametrizations, the descent loop, and stages from coarse to fine."""

from learnreg.optimization.convex import ConvexStage
from learnreg.optimization.demons import DemonsStage
from learnreg.optimization.dense import CompositiveParametrization, DenseParametrization
from learnreg.optimization.descent import Descent, descend
from learnreg.optimization.features import IntensityAndGradient, SelfSimilarity
from learnreg.optimization.flows import ShootingParametrization, TimeVaryingParametrization, shoot
from learnreg.optimization.freeform import BSplineParametrization, KernelParametrization
from learnreg.optimization.initialization import CenterOfMass, CenterOfView, LandmarkStart, Moments, RotationSearch
from learnreg.optimization.iterative import FieldStage, IterativeStage, LinearStage
from learnreg.optimization.linear import LinearParametrization
from learnreg.optimization.optimizers import LargestStep, LineSearch, VectorAdam
from learnreg.optimization.parametrization import Parametrization, ParametrizationFactory
from learnreg.optimization.stage import LevelHistory, Stage, StageDict, StageResult, run_stages
from learnreg.optimization.symmetric import SymmetricParametrization

__all__ = [
    "BSplineParametrization",
    "CenterOfMass",
    "CenterOfView",
    "ConvexStage",
    "DemonsStage",
    "CompositiveParametrization",
    "DenseParametrization",
    "Descent",
    "FieldStage",
    "IntensityAndGradient",
    "IterativeStage",
    "KernelParametrization",
    "LandmarkStart",
    "LargestStep",
    "LevelHistory",
    "LineSearch",
    "LinearParametrization",
    "LinearStage",
    "Moments",
    "Parametrization",
    "ParametrizationFactory",
    "RotationSearch",
    "SelfSimilarity",
    "ShootingParametrization",
    "Stage",
    "StageDict",
    "StageResult",
    "SymmetricParametrization",
    "TimeVaryingParametrization",
    "VectorAdam",
    "descend",
    "run_stages",
    "shoot",
]
