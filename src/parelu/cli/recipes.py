"""The command that conducts recipes, those of the papers' tables among them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from parelu.cli.compare import print_beside
from parelu.cli.inspection import print_frontier, save_report
from parelu.cli.output import say
from parelu.cli.training import conduct_all

if TYPE_CHECKING:
    from parelu.api import Experiment


def resolve() -> None:
    """No type of its options is read off a registry."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Run a recipe: a YAML file with networks, a data set, methods and seeds; a run folder for each network and seed.
    Without a name, lists those that come with parelu.

    parelu recipe colour-fashion

    parelu recipe deepreduce/table4 --dry-run

    parelu recipe deepreduce/table4 --scale small --seeds 0 1 2
    """

    recipe: tyro.conf.Positional[str] = ""
    """a file, or the name of a recipe that comes with parelu"""
    run: Path | None = None
    """folder of the run folders; runs/NAME if left out"""
    data_folder: Path | None = None
    """where the data set's files are"""
    weights: Path | None = None
    """of the trained network, where it is not to be trained: a safetensors file or a checkpoint of torch"""
    networks: tuple[str, ...] = ()
    """these of the recipe's networks alone, such as one a machine"""
    methods: tuple[str, ...] = ()
    """these of the recipe's methods alone"""
    seeds: tuple[int, ...] = ()
    """instead of the recipe's own"""
    scale: Literal["full", "small"] = "full"
    """small: the same with narrower networks, fewer images and epochs, on colour-fashion: minutes on two cores"""
    on: str | None = None
    """where networks are trained, all runs at once: ray:HOST:PORT, a cluster that sees the run folder too; ray, one
    that is started here; with cpus=N and gpus=N of each training, such as ray:auto,gpus=0.5. This machine's cores, one
    run after another, if left out"""
    dry_run: bool = False
    """say what would be trained, and whether the data is there"""

    def __call__(self) -> None:
        from parelu import api
        from parelu.report.recipes import listed_text

        if not self.recipe:
            print(listed_text())
            return
        whole = api.read_recipe(self.recipe)
        recipe = whole.only(self.networks, self.methods, self.seeds)
        for line in filter(None, (recipe.title, recipe.paper)):
            say(line)
        given = {"data_folder": self.data_folder, "weights": self.weights}
        experiments = [dataclasses.replace(one, **given) for one in recipe.experiments]
        if self.scale == "small":
            experiments, full = api.small(experiments, whole.experiments), experiments
            say(api.difference(full, experiments))
        if self.dry_run:
            self._say_outlook(experiments, recipe.cost)
            return
        folder = self.run or Path("runs") / self._name
        folders = [folder / recipe.folder(one) for one in experiments]
        runs = conduct_all(experiments, folders, self.on)
        print_frontier(runs)
        print_beside(runs)
        save_report(runs, folder / "report.html")

    @property
    def _name(self) -> str:
        """Of the run folders' folder; a recipe of another scale has another."""
        name = Path(self.recipe)
        plain = name.stem if name.suffix in (".yaml", ".yml") else self.recipe
        return plain if self.scale == "full" else f"{plain}-{self.scale}"

    def _say_outlook(self, experiments: list[Experiment], cost: str) -> None:
        """Of one seed: the others do the same."""
        from parelu import api
        from parelu.report.recipes import data_text, outlook_text, work_text

        seeds = dict.fromkeys(one.seed for one in experiments)
        ahead = [api.outlook(one) for one in experiments if one.seed == experiments[0].seed]
        for one in ahead:
            print(outlook_text(one))
        print(work_text(ahead, len(seeds), cost))
        print(data_text(experiments[0]))


COMMANDS: dict[str, type[Any]] = {"recipe": Recipe}
