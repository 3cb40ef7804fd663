from .callbacks import (
    AmortizationGap as AmortizationGap,
    Pictures as Pictures,
    Progressive as Progressive,
    SaveTemplate as SaveTemplate,
)
from .checkpoints import (
    AtomicCheckpointIO as AtomicCheckpointIO,
    LastCheckpoint as LastCheckpoint,
    MetricsTable as MetricsTable,
)
from .distillation import Distillation as Distillation
from .module import RegistrationModule as RegistrationModule
from .schedules import (
    Constant as Constant,
    Cosine as Cosine,
    Polynomial as Polynomial,
    Schedule as Schedule,
    Steps as Steps,
)
