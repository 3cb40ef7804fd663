"""Methods: ``(fixed, moving) -> Registration``, iterative, one-shot and refined."""

from learnreg.methods.api import register
from learnreg.methods.base import Method, Registration
from learnreg.methods.groupwise import Template, build_template
from learnreg.methods.iterative import IterativeMethod
from learnreg.methods.one_shot import OneShotMethod
from learnreg.methods.presets import load_method

__all__ = [
    "IterativeMethod",
    "Method",
    "OneShotMethod",
    "Registration",
    "Template",
    "build_template",
    "load_method",
    "register",
]
