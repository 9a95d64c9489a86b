"""What a message tells a user to type exists: every --option in a text of the sources is one of some command."""

import ast
import dataclasses
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import parelu
from parelu import api
from parelu.cli.main import COMMANDS

OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")
EVERY = {"help", "version"}
OTHERS = re.compile(r"\b(torchrun|ray start|pip install|nproc)\b")  # commands that have options of their own


def options_of(cls: type, seen: set[type]) -> Iterator[str]:
    """The options of a command's dataclass, and of those that its fields hold."""
    if cls in seen or not dataclasses.is_dataclass(cls):
        return
    seen.add(cls)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if "Positional" not in str(field.type):
            yield field.name.replace("_", "-")
        inside = [hints[field.name], *typing.get_args(hints[field.name])]
        for kind in [*inside, *(one for part in inside for one in typing.get_args(part))]:
            if isinstance(kind, type):
                yield from options_of(kind, seen)


def known() -> set[str]:
    found = set(EVERY)
    for command in COMMANDS.values():
        sys.modules[command.__module__].resolve()
        found |= set(options_of(command, set()))
    for method in api.methods().values():
        found |= set(options_of(method, set()))
    return found


def named(path: Path) -> Iterator[str]:
    """The options in texts that a module hands to a call: an error, a line that is printed."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    for call in calls:
        parts = [part.value for part in ast.walk(call) if isinstance(part, ast.Constant)]
        text = " ".join(part for part in parts if isinstance(part, str))
        yield from () if OTHERS.search(text) else OPTION.findall(text)


def test_options_that_messages_name_exist():
    options, told = known(), 0
    for path in Path(parelu.__file__).parent.rglob("*.py"):
        for option in named(path):
            told += 1
            assert option in options, f"{path} tells users of --{option}"
    assert told > 40
