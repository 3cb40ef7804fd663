from .convex import ConvexStage as ConvexStage
from .demons import DemonsStage as DemonsStage
from .dense import (
    CompositiveParametrization as CompositiveParametrization,
    DenseParametrization as DenseParametrization,
)
from .descent import Descent as Descent, OptimizerFactory as OptimizerFactory, descend as descend
from .features import IntensityAndGradient as IntensityAndGradient, SelfSimilarity as SelfSimilarity
from .flows import (
    ShootingParametrization as ShootingParametrization,
    TimeVaryingParametrization as TimeVaryingParametrization,
    shoot as shoot,
)
from .freeform import BSplineParametrization as BSplineParametrization, KernelParametrization as KernelParametrization
from .initialization import (
    CenterOfMass as CenterOfMass,
    CenterOfView as CenterOfView,
    LandmarkStart as LandmarkStart,
    Moments as Moments,
    RotationSearch as RotationSearch,
)
from .iterative import FieldStage as FieldStage, IterativeStage as IterativeStage, LinearStage as LinearStage
from .linear import LinearParametrization as LinearParametrization
from .optimizers import (
    Adam as Adam,
    LargestStep as LargestStep,
    LineSearch as LineSearch,
    VectorAdam as VectorAdam,
)
from .parametrization import Parametrization as Parametrization, ParametrizationFactory as ParametrizationFactory
from .stage import (
    LevelHistory as LevelHistory,
    Stage as Stage,
    StageDict as StageDict,
    StageResult as StageResult,
    run_stages as run_stages,
)
from .symmetric import SymmetricParametrization as SymmetricParametrization
