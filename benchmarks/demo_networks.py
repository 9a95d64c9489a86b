"""Trains the two networks that `parelu demo` shows, and puts them into the package: `make demo-networks`."""

import shutil
from pathlib import Path

from parelu import api
from parelu.demo import networks
from parelu.runs.executor import InProcess

RUN = Path("runs/demo")


def main() -> None:
    (one,) = api.read_recipe("demo").experiments
    with api.TerminalProgress() as progress:
        run = api.run_experiment(one, RUN, progress, InProcess())
    trained = sorted(run.candidates(), key=lambda record: -record.metrics.relus)
    for record, folder in zip(trained, networks.packaged().values(), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("candidate.json", "candidate.safetensors"):
            shutil.copy(run.folder(record.name) / name, folder)
        print(f"{folder}: {record.metrics.relus:,} ReLUs, {record.metrics.test_accuracy:.1f} % of the test set right")


if __name__ == "__main__":
    main()
