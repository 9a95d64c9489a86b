"""The entry point of `parelu`: which command is meant, and how what goes wrong is said.

A command is a dataclass whose fields are its options. The modules of the commands import nothing heavy, so that
`parelu --help` answers at once; what a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import inspect
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

import parelu
from parelu.cli import (
    bench,
    calibrate,
    client,
    compare,
    demo,
    export,
    inspection,
    recipes,
    serve,
    tracking,
    training,
)
from parelu.cli.output import SEVERAL, complain, say
from parelu.errors import ProtocolError, UserError

COMMANDS: dict[str, type[Any]] = {
    **training.COMMANDS,
    **recipes.COMMANDS,
    **inspection.COMMANDS,
    **compare.COMMANDS,
    **bench.COMMANDS,
    **export.COMMANDS,
    **tracking.COMMANDS,
    **calibrate.COMMANDS,
    **serve.COMMANDS,
    **client.COMMANDS,
    **demo.COMMANDS,
}

TOGETHER = {**training.COMMANDS, **recipes.COMMANDS}  # what torchrun's ranks do together

ABOUT = (
    "From a convolutional network and a budget of ReLUs to the Pareto frontier of networks made for private inference, "
    "and private inference itself."
)
EXAMPLES = """examples:
  parelu quickstart
  parelu reduce snl --model "resnet10 m=8" --data colour-fashion --training short --budget 0.2 0.05
  parelu bench runs/quickstart

parelu COMMAND --help has the options of a command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with 2 and one line for what a user can mend, 130 when interrupted."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _run(sys.argv[1:] if arguments is None else list(arguments))
            sys.stdout.flush()
    except (UserError, ProtocolError) as error:
        sys.exit(_fail(str(error), error))
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno is None:
            raise
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "give another place"
        what = f"{error.filename or 'a file'}: {os.strerror(error.errno)}"
        sys.exit(_fail(f"{what}; {remedy} and run the same command again: finished networks are kept", error))
    except KeyboardInterrupt:
        say("parelu: interrupted; run the same command again to go on from what is finished")
        sys.exit(130)


def _run(arguments: list[str]) -> None:
    if not SEVERAL:
        _command(arguments)()
        return
    from parelu import api

    api.ranks.join()
    if arguments[:1] and arguments[0] in COMMANDS and arguments[0] not in TOGETHER:
        raise UserError(f"{arguments[0]} is one process; start it without torchrun")
    if api.ranks.number() == 0:
        _command(arguments)()
    else:  # the first speaks for all
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            with contextlib.redirect_stderr(nowhere):
                command = _command(arguments)
            command()
    api.ranks.leave()


def _command(arguments: list[str]) -> Any:
    """The command that is meant, with its options."""
    name = _parser().parse_args(arguments[:1]).command
    command = COMMANDS[name]
    sys.modules[command.__module__].resolve()
    config = (
        tyro.conf.CascadeSubcommandArgs,
        tyro.conf.OmitArgPrefixes,
        tyro.conf.OmitSubcommandPrefixes,
        tyro.conf.FlagCreatePairsOff,
    )
    return tyro.cli(command, prog=f"parelu {name}", args=arguments[1:], config=config)


def _parser() -> argparse.ArgumentParser:
    """Of the first word alone."""
    parser = argparse.ArgumentParser(
        prog="parelu", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"parelu {parelu.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, command in COMMANDS.items():
        about = " ".join(inspect.getdoc(command).split("\n\n")[0].split())  # pyright: ignore[reportOptionalMemberAccess]
        commands.add_parser(name, help=about, add_help=False)
    return parser


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    """One line, as errors have; where a library's warning comes from is for its own users."""
    say(f"parelu: {message}")


def _fail(message: str, error: Exception) -> int:
    if SEVERAL:
        from parelu import api

        if not api.ranks.is_to_say(error):
            return 2
    complain(message)
    return 2
