"""Methods: ``(fixed, moving) -> Registration``, iterative, one-shot and refined."""

from learnreg.methods.api import register
from learnreg.methods.base import Method, Registration
from learnreg.methods.iterative import IterativeMethod
from learnreg.methods.one_shot import OneShotMethod
from learnreg.methods.presets import load_method

__all__ = ["IterativeMethod", "Method", "OneShotMethod", "Registration", "load_method", "register"]
