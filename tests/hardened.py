"""A hardened installation: sources that nobody may write beside, a home folder that cannot be written to."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import parelu

DROP = 24  # prctl(2): PR_CAPBSET_DROP
OVERRIDE, READ_SEARCH, OWNER = 1, 2, 3  # capabilities(7): what lets root write anywhere


def without_privileges() -> None:
    """In a child before it becomes another program: root is bound by modes of files as everybody is."""
    if os.geteuid() == 0:
        for capability in (OVERRIDE, READ_SEARCH, OWNER):
            if ctypes.CDLL(None).prctl(DROP, capability, 0, 0, 0):
                raise OSError("a capability cannot be dropped")


class Installation:
    """A copy of the package in `folder`, read-only, and an empty home, read-only too."""

    def __init__(self, folder: Path) -> None:
        self.site, self.home, self.work = (folder / name for name in ("site", "home", "work"))
        self.home.mkdir()
        self.work.mkdir()
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(parelu.__file__).parent, self.site / "parelu", ignore=ignored)
        for path in (self.home, self.site, *self.site.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """`parelu` with these arguments; without an environment of ours but for what is given."""
        plain = {"PATH": os.environ["PATH"], "HOME": str(self.home), "PYTHONPATH": str(self.site), **environment}
        return subprocess.Popen(
            [sys.executable, "-m", "parelu", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=plain,
            cwd=self.work,
            preexec_fn=without_privileges,
        )

    def remove(self) -> None:
        """pytest cannot delete what nobody may write."""
        for path in (self.home, self.site, *self.site.rglob("*")):
            path.chmod(0o755)
