"""The tables of README.md and docs/ that follow from the code or from what was measured: `make docs` writes them.

    python docs/generate.py            write what is out of date, and name the pages
    python docs/generate.py --check    write nothing; exit with 1 where a page is out of date

A table stands between `<!-- generated: NAME -->` and `<!-- /generated -->`, NAME one of TABLES. Only what parelu brings
is listed, whatever else is installed here. The rows of libraries' networks (docs/zoo.md) need those libraries:
`python benchmarks/zoo.py` writes them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from parelu.cli.serve import MOST_CLIENTS, MOST_PROCESSES, MOST_STOCK, Serve
from parelu.data.dataset import ENTRIES
from parelu.methods.base import methods
from parelu.network.canonical.replacements import ALL, REPLACEMENTS
from parelu.private.engines.base import Options, engines
from parelu.private.lowering.program import LARGEST_PROGRAM
from parelu.private.offline.mode import modes
from parelu.private.protocol.delphi import MOST_PREPARED, PREPARED_RELUS
from parelu.private.protocol.relu import relus
from parelu.private.serving import greeting, health, ledger, log, served, server, stock, turns
from parelu.private.serving.daemon import of_all
from parelu.private.serving.metrics import Metrics
from parelu.private.serving.watcher import Standing
from parelu.private.transport import channel, patience
from parelu.registry import is_own
from parelu.runs.recipes import recipes

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(\n<!-- /generated -->)", re.DOTALL)


def method_table() -> str:
    """A row a method: where it comes from, how it meets its budget, its options."""
    rows = []
    for name, cls in methods().items():
        if is_own(cls):
            options = ", ".join(f"`{field.name}={field.default}`" for field in dataclasses.fields(cls))
            rows.append((f"`{name}`", cls.source, "exactly" if cls.exact else "at most", options))
    return _table(("name", "source", "budget", "options"), rows)


def data_table() -> str:
    """A row a data set: what it is, where its files are looked for, what its training images go through."""
    rows = []
    for name, source in ENTRIES.items():
        system = [f"`{source.place.system}`"] if source.place and source.place.system else []
        places = [*system, "`--data-folder`" if source.place else "bundled", *["a download"][: bool(source.fetch)]]
        augmentation = source.augmentation
        steps = [f"crop, ±{augmentation.pad} pixels"] if augmentation.pad else []
        steps += ["flip"] if augmentation.flip else []
        rows.append((f"`{name}`", _first_line(source.read.__doc__), ", ".join(places), ", ".join(steps) or "–"))
    return _table(("name", "what", "where its files come from", "augmentation"), rows)


def network_table() -> str:
    """A row a network of ours: whether it can be run as private inference, ReLUs, multiply-adds."""
    zoo = _benchmark("zoo")
    return "\n".join([*zoo.head(zoo.OURS), *zoo.ours()])


def recipe_table() -> str:
    """A row a recipe that comes with parelu."""
    rows = []
    for name, path in recipes().items():
        recipe = yaml.safe_load(path.read_text())
        names = ", ".join(dict.fromkeys(f"`{method['name']}`" for method in recipe["methods"]))
        rows.append((f"`{name}`", recipe["title"], names, str(len(recipe.get("seeds", [0])))))
    return _table(("recipe", "what", "methods", "seeds"), rows)


def replacement_table() -> str:
    """A row a replacement: of what, and whether `all` has it."""
    rows = []
    for (kind, other), rules in REPLACEMENTS.items():
        modules = [f"`{target.__name__}`" for target in rules if isinstance(target, type)]
        said = {_first_line(rule.__doc__) for rule in rules.values() if rule.__doc__}
        what = "; ".join(filter(None, (", ".join(modules), *said)))
        rows.append((f"`{kind}={other}`", what, "yes" if ALL.get(kind) == other else "no"))
    return _table(("`--replace`", "of what", "in `all`"), rows)


def protocol_table() -> str:
    """A row a ReLU protocol."""
    return _table(("`--relu`", "how"), [(f"`{name}`", _what(relu)) for name, relu in relus().items() if _is_ours(relu)])


def offline_table() -> str:
    """A row an offline mode: what it makes, and whom its privacy rests on."""
    rows = [(f"`{name}`", _what(mode), mode.threat_model) for name, mode in modes().items() if _is_ours(mode)]
    return _table(("`--offline`", "how", "privacy rests on"), rows)


def engine_table() -> str:
    """A row an engine, with the options' defaults: whom its privacy rests on."""
    rows = []
    for name, engine in engines().items():
        if _is_ours(engine):
            described = engine.described(Options())
            rows.append((f"`{name}`", described["relu"], described["offline_mode"], described["threat_model"]))
    return _table(("`--engine`", "ReLU protocol", "offline mode", "privacy rests on"), rows)


def measured_table() -> str:
    """All methods at equal budgets on colour-fashion, from benchmarks/methods.csv."""
    benchmark = _benchmark("methods")
    rows = [row for row in benchmark.figures(BENCHMARKS / "methods.csv") if row["setting"] == "colour"]
    return benchmark.table(rows, list(benchmark.variants()))


def limit_table() -> str:
    """A row a limit of a server, with its value or default, and who may change it."""
    options = {field.name: field.default for field in dataclasses.fields(Serve)}
    rows = [
        ("clients served at once, a process", f"{options['clients']}", f"`--clients`, up to {MOST_CLIENTS:,}"),
        ("processes", f"{options['processes']}", f"`--processes`, up to {MOST_PROCESSES}"),
        ("clients that wait, a process", f"{turns.WAITING}", ""),
        ("a wait for a turn", f"{options['wait']}", "`--wait`"),
        ("the same, of a client that is told nothing meanwhile", f"{server.PATIENCE:g} s", ""),
        ("connections beyond these, a process", f"{server.STRANGERS}", ""),
        ("a TLS handshake", f"{server.HANDSHAKE_TIMEOUT:g} s", ""),
        ("silence of a client", f"{channel.TIMEOUT:g} s", "Python: `ServerOptions(timeout=…)`"),
        ("the slowest link", f"{patience.LEAST_RATE:g} bytes a second", ""),
        ("a greeting", f"{greeting.LARGEST_HELLO:,} bytes", ""),
        ("a program", f"{LARGEST_PROGRAM >> 20} MiB", ""),
        ("inferences prepared in a connection", f"{MOST_PREPARED}, and {PREPARED_RELUS:,} ReLUs", ""),
        (
            "inferences of a client",
            f"{served.BUDGET:,}; {served.PLAIN_BUDGET} where answers are not dithered",
            "`--budget`",
        ),
        ("inferences of a client in a minute, hour or day", "none", "`--allow`: `inferences`, `per`"),
        ("a client's stock", "none", f"`--stock`, up to {MOST_STOCK:,} inferences; `--allow`: `prepared`"),
        ("stocks of a client's name", f"{stock.STOCKS}", ""),
        ("offline phases that are opened", f"{served.AUDIT:g} of them", f"`--audit`, up to {served.MOST_AUDITED:g}"),
        ("phases not shown, after which a client is barred", f"{ledger.MOST_UNANSWERED}", "`parelu clients --forget`"),
        ("the end of sessions at SIGTERM", f"{options['drain']}", "`--drain`"),
        ("a request for health or metrics", f"{health.TIMEOUT:g} s", ""),
        ("a line of the log", f"{log.LONGEST:,} letters", ""),
        ("a model's name", "64 letters", ""),
    ]
    return _table(("what", "limit", "set by"), rows)


def metric_table() -> str:
    """A row a metric of a server."""
    metrics = Metrics(lambda: Standing(0, 0, 0, {"": 0}))
    rows = []
    for name, what, kind, *_ in (*metrics.snapshot(), *of_all(True, 1, 0, {}, {})):
        rows.append((f"`{name}{'_total' * (kind == 'counter')}`", kind, what.removesuffix(".")))
    return _table(("metric", "kind", "what"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "methods": method_table,
    "data": data_table,
    "networks": network_table,
    "recipes": recipe_table,
    "replacements": replacement_table,
    "protocols": protocol_table,
    "offline-modes": offline_table,
    "engines": engine_table,
    "measured-methods": measured_table,
    "limits": limit_table,
    "metrics": metric_table,
}


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def names(text: str) -> list[str]:
    """The tables that a page has."""
    return [match[2] for match in BLOCK.finditer(text)]


def filled(text: str) -> str:
    """A page with its tables as they should be; raises KeyError for a table that nothing makes."""
    return BLOCK.sub(lambda match: match[1] + _made(match[2]) + match[3], text)


@functools.cache
def _made(name: str) -> str:
    return TABLES[name]()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _first_line(docstring: str | None) -> str:
    """The first line of a docstring, without the full stop."""
    return (docstring or "").splitlines()[0].removesuffix(".")


def _what(extension: Any) -> str:
    """What a module says of its one class, after "ReLU protocol `sign`: "."""
    return _first_line(sys.modules[type(extension).__module__].__doc__).partition("`: ")[2]


def _is_ours(extension: Any) -> bool:
    return is_own(type(extension))


def _benchmark(name: str) -> Any:
    """A script of benchmarks/, which is no package."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = [page for page in pages() if filled(page.read_text()) != page.read_text()]
    for page in stale:
        print(f"{page.relative_to(ROOT)} {'is out of date: run make docs' if check else 'written'}")
        if not check:
            page.write_text(filled(page.read_text()))
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
