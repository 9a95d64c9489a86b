"""The engine: secure inference is the ring reference with the parties' seeds, to the bit."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from two_parties import MODES, NARROW, WIDE, Pair, Residual, images_of, lowered_of, ready, without_relus_at

from parelu.fusion.fuse import nothing
from parelu.network.spec import spec_of
from parelu.network.steps import apply_steps
from parelu.private.crypto.kernels import kernels
from parelu.private.fresh import fresh, untrained
from parelu.private.lowering import reference
from parelu.private.lowering.encode import encode_images
from parelu.private.lowering.lower import lower
from parelu.private.protocol.delphi import TRUNCATIONS, Material
from parelu.private.protocol.relu import relus
from parelu.private.transport.channel import HEADER

RELUS = list(relus())
PROTOCOLS = [(relu, *mode) for relu in RELUS for mode in MODES]


def polynomial(channels: int) -> torch.Tensor:
    """Identity, degree 1 and degree 2 in turn."""
    c = torch.tensor([[0.0, 1.0, 0.0], [0.1, 0.7, 0.0], [0.05, 0.5, 0.2], [-0.1, 0.9, -0.15]])
    return c[torch.arange(channels) % 4].T.contiguous()


def residual(seed: int, keep: float, width: int = 4) -> torch.nn.Module:
    return ready(Residual(width=width, seed=seed), (1, 6, 6), lambda u: u < keep, polynomial)


@pytest.mark.parametrize(("relu", "offline", "ring"), PROTOCOLS)
def test_secure_inference_is_the_replayed_reference(offline, relu, ring):
    lowered = lowered_of(residual(0, 0.5), ring=ring)
    assert lowered.program.squares and lowered.program.relus
    with Pair(lowered, relu, offline) as pair:
        for image in images_of(3, (1, 6, 6), seed=1):
            result, shares = pair.infer(image)
            assert np.array_equal(result, reference.replay(lowered, image, shares, relu))
            logits = lowered.program.ring.decode(result) * lowered.program.output_unit
            assert np.abs(logits - reference.run(lowered, image[None]).logits).max() < 0.05
    assert pair.server_error is None and pair.done == 3


@pytest.mark.parametrize("reveal", ["exact", "label"])
@pytest.mark.parametrize("relu", RELUS)
def test_images_of_one_query_share_its_rounds(relu, reveal):
    """Each image is the replayed reference of its own shares; the rounds are those of one image."""
    lowered = lowered_of(residual(0, 0.25))
    images = images_of(3, (1, 6, 6), seed=1)
    rounds = []
    with Pair(lowered, relu, reveal=reveal) as pair:
        for batch in (images[:1], images):
            pair.client.channel.traffic.clear()
            result, shares = pair.infer_all(batch)
            rounds.append(sum(t.turns for (phase, _), t in pair.client.channel.traffic.items() if phase == "online"))
            for image, got, own in zip(batch, result, shares, strict=True):
                expected = reference.replay(lowered, image, own, relu)
                if reveal == "label":
                    assert got.tolist() == [int(lowered.program.ring.decode(expected).argmax())]
                else:
                    assert np.array_equal(got, expected)
    assert pair.server_error is None and pair.done == 4
    assert rounds[0] == rounds[1]


@pytest.mark.usefixtures("dealt_base_transfers")
@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(0, 1), st.sampled_from(PROTOCOLS), st.integers(1, 3))
def test_secure_inference_of_random_programs(seed, keep, protocols, width):
    relu, offline, ring = protocols
    lowered = lowered_of(residual(seed, keep, 2 * width), ring=ring)
    image = images_of(1, (1, 6, 6), seed=seed)[0]
    with Pair(lowered, relu, offline) as pair:
        result, shares = pair.infer(image)
    assert pair.server_error is None
    assert np.array_equal(result, reference.replay(lowered, image, shares, relu))


class Shifted(Residual):
    """As its parent, behind a batch-norm that only the stem, which pads, can take in."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.first = torch.nn.BatchNorm2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.first(x))


@pytest.mark.parametrize("gone", [("relu2",), ("relu2", "relu3"), ("relu", "relu2", "relu3")])
def test_secure_inference_of_fused_networks(gone):
    network = without_relus_at(ready(Shifted(seed=1), (1, 6, 6), lambda u: u < 0.6), *gone)
    lowered = lowered_of(network, cost=lambda layer: 1.0)
    maps = [weights["bias"].ndim for weights in lowered.weights.values()]
    assert max(maps) == (1 if len(gone) == 3 else 3), "a bias that is a map, unless all is one matrix"
    assert len(lowered.program.ops) < len(lowered_of(network, cost=nothing).program.ops)
    with Pair(lowered) as pair:
        for image in images_of(3, (1, 6, 6), seed=1):
            result, shares = pair.infer(image)
            assert np.array_equal(result, reference.replay(lowered, image, shares, "sign"))
            logits = lowered.program.ring.decode(result) * lowered.program.output_unit
            assert np.abs(logits - reference.run(lowered, image[None]).logits).max() < 0.05
    assert pair.server_error is None


@pytest.mark.parametrize("relu", RELUS)
def test_convolutions_in_two_parts_are_the_replayed_reference(relu):
    """Where few positions are ReLUs, the server works on the others while the client does."""
    spec = spec_of("resnet10 m=2", (1, 8, 8), 10)
    candidate = untrained(spec, 0.15, seed=0)
    lowered = lower(candidate.network(), images_of(16, spec.input), candidate.preprocessing)
    with Pair(lowered, relu) as pair:
        assert sum(map(len, pair.model.followers.values())) > 5 or kernels.SPARSE == 0
        for image in images_of(3, spec.input, seed=1):
            result, shares = pair.infer(image)
            assert np.array_equal(result, reference.replay(lowered, image, shares, relu))


@pytest.mark.parametrize(("offline", "ring"), MODES)
def test_relu_reuse_is_the_replayed_reference(offline, ring):
    reduced = apply_steps(spec_of("hrn-2x2x2x m=4", (1, 8, 8), 10), "cull S1; thin S2+S3+S4; reuse 4")
    candidate = fresh(reduced.spec, reduced.plan)
    lowered = lower(candidate.network(), images_of(16, reduced.spec.input), candidate.preprocessing, ring=ring)
    with Pair(lowered, offline=offline) as pair:
        for image in images_of(2, reduced.spec.input, seed=1):
            result, shares = pair.infer(image)
            assert np.array_equal(result, reference.replay(lowered, image, shares, "sign"))


def test_material_is_taken_once():
    material = Material("content")
    assert material.take() == "content"
    with pytest.raises(RuntimeError, match="twice"):
        material.take()


def test_scattered_and_contiguous_masks_cost_the_same_bytes_and_rounds():
    def traffic(mask):
        network = ready(Residual(), (1, 6, 6))
        for site in network.sites.values():
            size = site.mask.numel()
            site.assign(mask(size, size // 3).view(site.shape))
        lowered = lowered_of(network)
        ops = [op for op in lowered.program.ops if op.kind == "activation"]
        for op in ops:  # the calibrated ranges may differ; they are not what is compared
            object.__setattr__(op, "bits", 16)
        with Pair(lowered) as pair:
            pair.infer(images_of(1, (1, 6, 6))[0])
        return {key: (t.sent, t.received, t.turns) for key, t in pair.client.channel.traffic.items() if "online" in key}

    def scattered(size, kept):
        return torch.randperm(size, generator=torch.Generator().manual_seed(1)) < kept

    assert traffic(scattered) == traffic(lambda size, kept: torch.arange(size) < kept)


class Recorder:
    """A socket that keeps what passes."""

    def __init__(self, socket):
        self.socket, self.sent, self.received = socket, bytearray(), bytearray()

    def sendall(self, data):
        self.sent += data
        self.socket.sendall(data)

    def recv_into(self, buffer):
        count = self.socket.recv_into(buffer)
        self.received += buffer[:count]
        return count

    def __getattr__(self, name):
        return getattr(self.socket, name)


def record(lowered, image, relu="sign", offline="dealer", truncation="local"):
    recorders = []

    def wrap(socket):
        recorders.append(Recorder(socket))
        return recorders[0]

    with Pair(lowered, relu, offline, wrap=wrap, truncation=truncation) as pair:
        pair.client.prepare()
        start = len(recorders[0].sent), len(recorders[0].received)
        pair.client.infer(encode_images(lowered.program, image[None]))
    return recorders[0].sent[start[0] :], recorders[0].received[start[1] :]


def frames(stream):
    """(kind, body) of each message."""
    found, position = [], 0
    while position < len(stream):
        kind, _, length = HEADER.unpack_from(stream, position)
        position += HEADER.size + length
        found.append((kind.strip().decode(), bytes(stream[position - length : position])))
    return found


@pytest.mark.parametrize("ring", [NARROW, WIDE])
@pytest.mark.parametrize(
    ("relu", "truncation"),
    [(name, how) for name, relu in relus().items() for how in TRUNCATIONS if how == "local" or relu.truncates],
)
def test_what_crosses_the_wire_looks_uniform(relu, truncation, ring):
    """Masked openings of a black and of a white image, over enough runs that a biased bit would show.

    What has a mask of 64 bits is uniform in all of them; what has none but a share, or the colours of a circuit, has
    nothing above the ring.
    """
    lowered = lowered_of(residual(1, 0.8), ring=ring)
    for level in (0, 255):
        image = torch.full((1, 6, 6), level, dtype=torch.uint8)
        opened = {"inpt": [], "mask": [], "sqre": [], "outp": []} | ({"open": []} if relu == "fss" else {})
        answers, flips, of_circuits = 2 if truncation == "exact" else 1, [], []
        for _ in range(32):
            sent, received = record(lowered, image, relu, truncation=truncation)
            activations = [op for op in lowered.program.ops if op.kind == "activation"]
            for kind, body in frames(sent) + frames(received):
                count = len(activations.pop(0).relus) if kind == "mask" else 0
                if kind == "mask" and relu == "sign":  # packed bits stand between the ReLUs' and the squares' elements
                    end = 8 * count + -(-answers * count // 8)
                    packed = np.frombuffer(body[8 * count : end], np.uint8)
                    flips.append(np.unpackbits(packed, count=answers * count, bitorder="little").reshape(answers, -1))
                    body = body[: 8 * count] + body[end:]
                elif kind == "mask" and relu == "full":
                    of_circuits.append(np.frombuffer(body[: 8 * count], np.uint64))
                    body = body[8 * count :]
                if kind in opened:
                    opened[kind].append(np.frombuffer(body, np.uint64))
        shown = [(kind, np.concatenate(parts), ring.bits if kind == "outp" else 64) for kind, parts in opened.items()]
        shown += [("circuits", np.concatenate(of_circuits), ring.bits)] if of_circuits else []
        for kind, elements, width in shown:
            assert len(elements) > 150, kind
            bits = (elements[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
            assert np.abs(bits[:, :width].mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(elements)), kind
            assert not bits[:, width:].any(), kind
        for answered in np.concatenate(flips, axis=1) if flips else ():
            assert len(answered) > 150 and abs(answered.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(answered))


@pytest.mark.parametrize(("relu", "offline", "ring"), PROTOCOLS)
def test_two_runs_on_one_image_share_no_message(relu, offline, ring):
    lowered = lowered_of(residual(2, 0.6), ring=ring)
    image = images_of(1, (1, 6, 6))[0]
    first, second = (record(lowered, image, relu, offline) for _ in range(2))
    for ours, theirs in zip(first, second, strict=True):
        assert [(kind, len(body)) for kind, body in frames(ours)] == [
            (kind, len(body)) for kind, body in frames(theirs)
        ]
        words = {body[i : i + 8] for kind, body in frames(ours) if kind != "comd" for i in range(0, len(body) - 7, 8)}
        for kind, body in frames(theirs):
            assert kind == "comd" or not any(body[i : i + 8] in words for i in range(0, len(body) - 7, 8)), kind


@pytest.mark.parametrize("truncation", ["local", "exact"])
@pytest.mark.parametrize("relu", RELUS)
def test_out_of_the_calibrated_range_the_reference_errs_as_the_parties_do(relu, truncation):
    """Calibrated on dark images, run on bright ones: some ReLUs take a wrong sign, where a protocol sees m bits."""
    network, images = residual(1, 0.7), images_of(6, (1, 6, 6), seed=1)
    dark = images_of(16, (1, 6, 6)) // 32
    lowered = lower(network, dark, {"mean": [0.0], "std": [0.02]}, ring=NARROW)
    program = dataclasses.replace(lowered.program, output_bits=NARROW.bits)  # with a range of its own it is no result
    lowered = dataclasses.replace(lowered, program=program)
    expected = reference.run(lowered, images, relu=relu)
    kind = reference.run(lowered, images, relu="full")
    assert expected.overflows > 0 and kind.overflows > 0
    assert np.array_equal(expected.logits, kind.logits) == (relu == "full")
    truncation = truncation if relus()[relu].truncates else "local"
    with Pair(lowered, relu, truncation=truncation) as pair:
        results = [lowered.program.ring.decode(pair.infer(image)[0]) for image in images]
    logits = np.array(results) * lowered.program.output_unit
    assert np.abs(logits - expected.logits).max() < 0.002 * np.abs(expected.logits).max()
