from .api import register as register
from .base import Method as Method, Registration as Registration
from .contrast import (
    ByContrast as ByContrast,
    contrast_agreement as contrast_agreement,
    local_agreement as local_agreement,
)
from .evaluation import evaluate as evaluate, score_case as score_case, summarize as summarize, table as table
from .groupwise import GroupTemplate as GroupTemplate, build_template as build_template
from .iterative import IterativeMethod as IterativeMethod
from .measures import evidence as evidence
from .one_shot import OneShotMethod as OneShotMethod
from .presets import load_method as load_method
from .series import (
    RegisteredSeries as RegisteredSeries,
    framewise_displacement as framewise_displacement,
    motion_parameters as motion_parameters,
    register_series as register_series,
)
from .verdicts import Verdict as Verdict, verdict as verdict
