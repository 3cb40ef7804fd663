"""Exceptions for bad input.

Each is also the built-in exception that fits, so ``except ValueError`` keeps working. The command line prints their
message as one line. Every other exception is a bug and keeps its traceback.
"""

from __future__ import annotations


class InputError(ValueError):
    """A value, file or setting cannot be used; the message says what was given, what is expected and the remedy."""


class InputTypeError(InputError, TypeError):
    """An argument has the wrong type."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder does not exist."""


class MissingPackageError(InputError, ModuleNotFoundError):
    """An optional package is not installed."""


class UntrustedClassError(InputError):
    """A file needs a class of a package that is not trusted; the message ends with the way to trust it.

    Args:
        problem: What needs which class.
        package: The package to trust.
        remedy: How to trust a package, where the error is shown.
    """

    def __init__(self, problem: str, package: str, remedy: str = 'trust=["{}"]') -> None:
        self.problem, self.package = problem, package
        super().__init__(f"{problem}; if you trust the package, give {remedy.format(package)}.")
