"""The commands as functions of Python: typed arguments, and docstrings from which the help is made.

These modules import nothing heavy, so ``learnreg COMMAND --help`` and a typing error are instant; each function imports
what it needs when it is called.

Example:
    >>> from learnreg.apps.commands import convert
    >>> learnreg.transforms.write_transform(learnreg.Affine.identity(3), learnreg.Grid.regular((4, 4, 4)), "unit.tfm")
    >>> convert("unit.tfm", output="unit.mat")
    Wrote unit.mat
"""

from learnreg.apps.commands.others import check, doctor, export, methods, runs, train
from learnreg.apps.commands.pairs import apply, compose, convert, invert, jacobian, register, report
from learnreg.apps.commands.sets import batch, bids, evaluate, series, template

__all__ = [
    "apply",
    "batch",
    "bids",
    "check",
    "compose",
    "convert",
    "doctor",
    "evaluate",
    "export",
    "invert",
    "jacobian",
    "methods",
    "register",
    "report",
    "runs",
    "series",
    "template",
    "train",
]
