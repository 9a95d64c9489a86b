"""The size and shape of the source: files, rooms, long functions, what is not typed.

python benchmarks/house.py [CHECKOUT]
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path


def figures(checkout: Path) -> dict[str, str]:
    """What → how much, of the package in a checkout."""
    root = checkout / "src" / "parelu"
    sources = {path.relative_to(root): path.read_text() for path in sorted(root.rglob("*.py"))}
    entries = {path.parts[0] for path in sources if path.name not in ("__main__.py",)} - {"__init__.py"}
    functions = [
        (node.end_lineno - node.lineno + 1 - _docstring(node), f"{path}:{node.name}")
        for path, text in sources.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    ]
    longest, longest_file = max(functions), max(sources, key=lambda path: sources[path].count("\n"))
    rooms = [checkout / room for room in ("src", "tests", "benchmarks")]
    everything = [path.read_text() for room in rooms for path in room.rglob("*.py")]
    return {
        "files": str(len(sources)),
        "entries at the top": str(len(entries)),
        "lines": f"{sum(text.count(chr(10)) for text in sources.values()):,}",
        "longest file": f"{sources[longest_file].count(chr(10))} ({longest_file})",
        "functions": f"{len(functions):,}",
        "longest function, less its docstring": f"{longest[0]} ({longest[1]})",
        "Mapping[str, Any], dict[str, Any]": str(
            sum(len(re.findall(r"(?:Mapping|dict)\[str, Any\]", text)) for text in sources.values())
        ),
        "lines exempt from the formatter": str(sum(len(re.findall(r"#\s*fmt: (?:skip|off)", t)) for t in everything)),
    }


def _docstring(node: ast.FunctionDef) -> int:
    """Its lines."""
    text = ast.get_docstring(node, clean=False)
    return text.count("\n") + 1 if text else 0


if __name__ == "__main__":
    for what, how_much in figures(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent)).items():
        print(f"{what:<40}{how_much}")
