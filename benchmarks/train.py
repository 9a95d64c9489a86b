"""What a training step takes on whatever device is here, and the learned methods' curves on it within given minutes.

    python benchmarks/train.py                                      # speed alone
    python benchmarks/train.py --minutes 13 --out "$OUT"            # then searches, as many images as fit
    python benchmarks/train.py --model "resnet10 m=4" --data digits --batch 64 --steps 3 --minutes 1 --out runs/try

Speed: the plain network (nn.ReLU, never traced), the same as sites, and the searches' loops, with the teacher's logits
at hand; blocks of steps alternate, the ratio is of their medians. The share of the matrix rate is that of what a large
product reaches here in the type that training uses, three products a layer and step. A GPU's utilisation is what
nvidia-smi says meanwhile. Targets, on a GPU: a search's step takes at most 1.15 of the plain one.

Searches: SNL, AutoReP and Fisher for 50K, 12.9K and 6K ReLUs, one seed; images are left out until all fits into the
minutes, by the rate that was measured. The run folder in --out has the curves; summary.json has all that is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from parelu import api, data
from parelu.data.dataset import Dataset
from parelu.methods.autorep import Indicators
from parelu.methods.fisher import Ranked
from parelu.methods.snl import Slopes
from parelu.network.count import counts
from parelu.network.instrument import network_of
from parelu.network.spec import Spec, spec_of
from parelu.training.batches import autocast, device, fit, memory_format, normalised_batches
from parelu.training.callback import Still
from parelu.training.loop import _Loop, _optimizers
from parelu.training.meter import Meter
from parelu.training.objectives import CrossEntropy, Distillation
from parelu.training.schedule import SHORT
from parelu.training.teacher import Teacher

BUDGETS = ("50k", "12.9k", "6k")  # AutoReP, Table 3, of 491.52K; of a smaller network the same shares
FULL, SEARCH, FINETUNE = 6, 6, 3  # epochs
EPOCHS = FULL + 3 * 1.5 * (SEARCH + FINETUNE * len(BUDGETS))  # in units of a plain one: with a teacher, and gates
AIM = 1.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18 m=64")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--input", default="1x32x32")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40, help="of a block; five blocks of each")
    parser.add_argument("--minutes", type=float, default=0.0, help="for the searches, the speed's own ones included")
    parser.add_argument("--methods", nargs="*", default=["snl", "autorep", "fisher"])
    parser.add_argument("--out", type=Path, default=Path("runs/train"))
    arguments = parser.parse_args()
    started, shape = time.monotonic(), api.parse_input(arguments.input)
    dataset = data.load(arguments.data, input_shape=shape)
    spec = spec_of(arguments.model, shape, dataset.classes)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}
    found |= {"model": arguments.model, "batch": arguments.batch, "torch": torch.__version__}
    found["speed"] = speed(spec, dataset, arguments.batch, arguments.steps)
    print_speed(found)
    if arguments.minutes:
        left = 60 * arguments.minutes - (time.monotonic() - started)
        rate = found["speed"]["sites"]["images_a_second"]
        found["candidates"] = searches(arguments, shape, spec, dataset, rate, left)
        for name, row in found["candidates"].items():
            print(f"  {name:<24}{row['relus']:>9,} ReLUs {row['test']:6.2f} % test {row['seconds']:7.1f} s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "summary.json").write_text(json.dumps(found, indent=1))
    print(f"all in {time.monotonic() - started:.0f} s; {arguments.out / 'summary.json'}")


def speed(spec: Spec, dataset: Dataset, batch: int, steps: int, blocks: int = 5) -> dict[str, Any]:
    """Name → seconds a step, images a second, ratio to the plain network, share of the matrix rate."""
    budget = max(1, counts(spec).relus // 10)
    ways = {
        "sites": None,
        "snl": Slopes(budget, lr=1e-2),
        "autorep": Indicators(budget, degree=2, wide=3.0),
        "fisher": Ranked(budget),
    }
    runs = {"plain": _plain(spec, dataset, batch), **{n: _looped(spec, dataset, batch, o) for n, o in ways.items()}}
    for run in runs.values():
        run(3)  # kernels are chosen, and loops compiled
    times: dict[str, list[float]] = {name: [] for name in runs}
    with utilised() as busy:
        for _ in range(blocks):
            for name, run in runs.items():
                times[name].append(_timed(run, steps))
    peak, plain = matrix_rate(), statistics.median(times["plain"])
    work = 3 * 2 * counts(spec).macs * batch
    found: dict[str, Any] = {"matrix_rate": peak, "utilisation": busy}
    for name, seconds in times.items():
        one = statistics.median(seconds)
        found[name] = {
            "seconds": one,
            "spread": (max(seconds) - min(seconds)) / one,
            "images_a_second": batch / one,
            "ratio": one / plain,
            "share_of_matrix_rate": work / one / peak,
        }
    return found


def _timed(run: Callable[[int], None], steps: int) -> float:
    """Seconds a step."""
    wait()
    started = time.perf_counter()
    run(steps)
    wait()
    return (time.perf_counter() - started) / steps


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _plain(spec: Spec, dataset: Dataset, batch: int) -> Callable[[int], None]:
    """Steps of the module as anybody writes it: the same data, SGD and cross-entropy."""
    torch.manual_seed(0)
    network = network_of(spec)  # for its layout and its side
    module = spec.module().to(device(), memory_format=memory_format(network)).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    batches = _endless(dataset, batch)

    def run(steps: int) -> None:
        for _ in range(steps):
            images, labels = next(batches)
            with autocast():
                logits = module(fit(images, network))
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()

    return run


def _endless(dataset: Dataset, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    epoch, training = 0, dataclasses.replace(SHORT, batch=batch)
    while True:
        yield from normalised_batches(dataset, training, 0, epoch)
        epoch += 1


def _looped(spec: Spec, dataset: Dataset, batch: int, options: Any) -> Callable[[int], None]:
    """Steps of parelu's own loop; options: of a search's optimizer, None for the network as it is."""
    torch.manual_seed(0)
    network, training = network_of(spec), dataclasses.replace(SHORT, batch=batch, lr=0.01, epochs=1000)
    network.to(device(), memory_format=memory_format(network))  # pyright: ignore[reportCallIssue]
    callback = Still() if options is None else options.build(network)
    objective = CrossEntropy() if options is None else Distillation()
    taught = None if options is None else _Known(network_of(spec), Path())
    loop = _Loop(network, dataset, training, objective, 0, taught, callback, _optimizers(network, training, callback))
    meter, steps_of = Meter(), _steps(loop)

    def run(steps: int) -> None:
        meter.begin(ArithmeticError)
        for _ in range(steps):
            meter.add(next(steps_of))

    return run


def _steps(loop: _Loop) -> Iterator[dict[str, torch.Tensor]]:
    epoch = 0
    while True:
        yield from loop.epoch(epoch)
        epoch += 1


class _Known(Teacher):
    """A teacher whose logits are at hand, as they are once another network of the run has gone through the epoch."""

    def logits(self, dataset: Dataset, training: Any, seed: int, epoch: int) -> Callable[..., torch.Tensor]:
        known = torch.zeros(training.batch, dataset.classes, device=device())
        return lambda number, images: known[: len(images)]


def matrix_rate() -> float:
    """Operations a second of a large matrix product, in the type that training uses here."""
    size, kind = (8192, torch.bfloat16) if torch.cuda.is_available() else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device(), dtype=kind) for _ in range(2))
    a @ b
    best = min(_timed(lambda steps: [a @ b for _ in range(steps)] and None, 5) for _ in range(5))
    return 2 * size**3 / best


@contextmanager
def utilised() -> Iterator[list[int]]:
    """Percent in which the GPU did something, five times a second, as nvidia-smi says; filled when the block ends."""
    found: list[int] = []
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    try:
        watching = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
    except OSError:  # no GPU
        yield found
        return
    yield found
    watching.terminate()
    found += [int(line) for line in watching.communicate()[0].split() if line.isdigit()]


def searches(
    arguments: argparse.Namespace, shape: Any, spec: Spec, dataset: Dataset, rate: float, seconds: float
) -> dict[str, Any]:
    """Name → ReLUs, accuracy and seconds of each candidate; the whole takes about so many seconds."""
    images = int(min(len(dataset.train), max(4 * arguments.batch, 0.8 * seconds * rate / EPOCHS)))
    whole = counts(spec).relus
    shares = tuple(f"{float(text.rstrip('k')) / 491.52:.6f}" for text in BUDGETS)
    budgets = BUDGETS if whole > 100_000 else shares
    epochs = {"search_epochs": SEARCH, "finetune_epochs": FINETUNE}
    chosen = [api.methods()[name](**epochs) for name in arguments.methods]
    training = dataclasses.replace(SHORT, epochs=FULL, batch=arguments.batch, lr=0.1)
    reductions = tuple(api.Reduction(method, budgets) for method in chosen)
    print(f"  {images:,} training images, {FULL}, {SEARCH} and {FINETUNE} epochs; budgets {', '.join(budgets)}")
    one = api.Experiment(arguments.model, arguments.data, reductions, training, input=shape, images=images)
    with api.TerminalProgress() as progress:
        run = api.run_experiment(one, arguments.out / "run", progress, api.InProcess())
    return {
        record.name: {
            "relus": record.metrics.relus,
            "squares": record.metrics.squares,
            "validation": record.metrics.validation_accuracy,
            "test": record.metrics.test_accuracy,
            "seconds": record.metrics.seconds,
            "curve": [epoch.to_json() for epoch in record.history],
        }
        for record in run.candidates()
    }


def print_speed(found: dict[str, Any]) -> None:
    rows = found["speed"]
    busy = rows["utilisation"]
    used = f", {statistics.mean(busy):.0f} % utilised" if busy else ""
    print(f"{found['device']}, {found['model']}, batch {found['batch']}: {rows['matrix_rate'] / 1e12:.3g} T/s{used}")
    for name, row in rows.items():
        if isinstance(row, dict):
            late = "  above the aim" if name in ("snl", "fisher") and row["ratio"] > AIM else ""
            print(
                f"  {name:<10}{row['images_a_second']:>12,.0f} images/s  {row['seconds'] * 1e3:8.2f} ms ± "
                f"{50 * row['spread']:.0f} %  {row['ratio']:.3f} of plain  {100 * row['share_of_matrix_rate']:5.1f} % "
                f"of the matrix rate{late}"
            )


if __name__ == "__main__":
    main()
