"""Commands as a user types them, in this process."""

import pytest

from parelu.cli import main as cli


def run(*arguments: str) -> int:
    """Exit code of a command."""
    try:
        cli.main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a bad command gives."""
    capsys.readouterr()
    assert run(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("parelu: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("parelu: ")
