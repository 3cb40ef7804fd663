"""The command ``learnreg``; heavy imports happen only when a command runs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    UnusedCliTokensError,
)
from cyclopts.help import DefaultFormatter, InlineText

from learnreg import __version__
from learnreg.apps import commands
from learnreg.apps.environment import let_threads_sleep
from learnreg.apps.errors import one_line, reporting_errors
from learnreg.errors import InputError

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

HELP = """Classical and learned medical image registration.

For example:
  learnreg register FIXED.nii.gz MOVING.nii.gz -o OUT
  learnreg apply OUT/transform.h5 LABELS.nii.gz -r FIXED.nii.gz -o labels.nii.gz --labels
  learnreg batch PAIRS.csv -o OUT
  learnreg train experiment=quickstart
  learnreg register --help                        (options and examples of a command)
"""
DEBUG = "--debug"
EPILOGUE = f"{DEBUG}, with any command, shows the traceback of an error."
GROUPS = {
    "One pair": (
        commands.register,
        commands.apply,
        commands.compose,
        commands.invert,
        commands.convert,
        commands.jacobian,
        commands.report,
    ),
    "Many images": (commands.batch, commands.bids, commands.evaluate, commands.series, commands.template),
    "Training and data": (
        commands.check,
        commands.train,
        commands.runs,
        commands.export,
        commands.methods,
        commands.doctor,
    ),
}


class _Help(DefaultFormatter):
    """Fill the lines of a description, which a docstring breaks at its own width."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        super().__call__(console, options, panel.copy(entries=[_filled(entry) for entry in panel.entries]))


def _filled(entry: HelpEntry) -> HelpEntry:
    if not isinstance(entry.description, InlineText):
        return entry
    text = str(getattr(entry.description.primary_renderable, "plain", ""))
    return entry.copy(description=InlineText.from_format(" ".join(text.split()), "plaintext"))


def application() -> App:
    """Return the commands with their help."""
    app = App(
        name="learnreg",
        help=HELP,
        help_epilogue=EPILOGUE,
        help_format="plaintext",
        help_formatter=_Help(),
        version=f"learnreg {__version__}",
        default_parameter=Parameter(negative=()),
        group_commands=Group("Help", sort_key=len(GROUPS)),
        verbose=False,
        suppress_keyboard_interrupt=False,
    )
    for place, (heading, functions) in enumerate(GROUPS.items()):
        group = Group(heading, sort_key=place)
        for function in functions:
            if function is commands.train:  # its options are Hydra's
                app.command(function, group=group, help_flags=[], version_flags=[], end_of_options_delimiter="")
            else:
                app.command(function, group=group)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    let_threads_sleep()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = False
    if given[:1] != ["train"]:  # whose arguments are Hydra's
        debug = DEBUG in given
        given = [word for word in given if word != DEBUG]
        warnings.formatwarning = _one_line_warning
    with reporting_errors(debug=debug, remedy="--trust {}"):
        try:
            if not given:
                raise InputError("Name a command; `learnreg --help` lists them.")
            application()(given, exit_on_error=False, print_error=False, result_action="return_value")
        except CycloptsError as error:
            print(f"error: {_explained(error)}", file=sys.stderr)
            raise SystemExit(2) from None


def _explained(error: CycloptsError) -> str:
    """Return on one line what is wrong with a command line."""
    command = " ".join(("learnreg", *(error.command_chain or ())))
    if isinstance(error, UnusedCliTokensError):
        return f"{command} takes no {' '.join(map(repr, error.unused_tokens or ()))}; see {command} --help."
    if isinstance(error, MissingArgumentError) and error.argument is not None and not error.argument.tokens:
        if error.keyword is not None:
            return f"{error.keyword} needs a value; see {command} --help."
        return f"{command} needs {', '.join(error.argument.names)}; see {command} --help."
    text = one_line(error)
    if isinstance(error, CoercionError) and error.argument is not None and error.argument.name not in text:
        return f"Invalid value for {error.argument.name}: {text}"  # of a second or later value
    return text


def _one_line_warning(message: Warning | str, *_: object, **__: object) -> str:
    return f"warning: {message}\n"


if __name__ == "__main__":
    main()
