"""bench, serve, infer and certs, as a user runs them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused, run
from PIL import Image

from parelu import data
from parelu.errors import UserError
from parelu.network.images import read_image
from parelu.private.crypto.ring import WIDE, WIDTHS, Ring
from parelu.private.engines import base as engines
from parelu.private.engines.base import Measurement
from parelu.private.lowering import reference
from parelu.private.offline.mode import DEFAULT, ring_for
from parelu.private.rows import Cost, Costs
from parelu.private.serving.listening import listen
from parelu.report.latency import gained_text
from parelu.report.page import write_report
from parelu.report.private import duration, size
from parelu.runs import measurement
from parelu.runs.folder import Run

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(scope="module")
def study(finished, tmp_path_factory):
    """A copy of a finished run, of two networks: each that is measured costs two processes."""
    folder = tmp_path_factory.mktemp("private") / "run"
    kept = {"teacher", "random-37"}
    shutil.copytree(
        finished[0].path,
        folder,
        ignore=lambda path, names: set(names) - kept if Path(path).name == "candidates" else (),
    )
    return Run.open(folder)


PHASE = {"seconds", "bytes_to_client", "bytes_to_server", "rounds", "cpu_client", "cpu_server"}


@pytest.mark.parametrize(
    ("relu", "offline", "network"),
    [
        ("fss", "dealer", "loopback"),
        ("full", "seal", "8Gb/s,2ms"),
        ("sign", "hints", "lan"),
        ("fss", "hints", "loopback"),
    ],
)
def test_bench_prints_a_row(capsys, request, relu, offline, network):
    if (relu, offline) != ("sign", "hints"):
        request.getfixturevalue("parties_as_threads")
    arguments = ["resnet10 m=2", "--input", "1x8x8", "--keep", "0.3", "--images", "2", "--batch", "2", "--json"]
    assert run("bench", *arguments, "--relu", relu, "--offline", offline, "--link", network) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["engine"], row["relu"], row["offline_mode"], row["network"]) == ("delphi", relu, offline, network)
    trust, maker = (
        ("no privacy against it", "dealer makes") if offline == "dealer" else ("no third party", "both parties make")
    )
    assert trust in row["threat_model"], "every row says whom it trusts"
    assert ("hints_bytes" in row) == (offline == "hints")
    assert row.get("hints_bytes", 0) < row["setup"]["bytes_to_client"]
    assert (f"{maker} the" in row["threat_model"]) == (relu == "fss")
    assert 0 < row["relus"] < 2000 and row["squares"] == 0
    for phase in ("online", "offline"):
        assert set(row[phase]) == PHASE and all(value >= 0 for value in row[phase].values())
    assert row["agreement"] == 1 and row["max_error"] < 0.05 and row["peak_mb"] > 50
    assert set(row["parts"]) == ({"online"} if offline == "dealer" else {"online", "offline"})
    for phase, parts in row["parts"].items():
        for what in ("bytes_to_client", "bytes_to_server"):
            assert sum(part[what] for part in parts.values()) == row[phase][what]
        assert all(part["seconds"] >= 0 for part in parts.values())
        assert sum(part["seconds"] for part in parts.values()) == pytest.approx(row[phase]["seconds"])
        in_relus = [x for x in row["layers"] if x["phase"] == phase and "relu" in x["layer"]]
        assert parts["relu"]["bytes_to_client"] == sum(layer["bytes_to_client"] for layer in in_relus)
    online = [layer for layer in row["layers"] if layer["phase"] == "online"]
    assert sum(layer.get("bytes_to_client", 0) for layer in online) == row["online"]["bytes_to_client"]
    sites = sum(".relu" in layer["layer"] or layer["layer"] == "relu" for layer in online)
    assert sites <= row["online"]["rounds"] <= sites + 1.5
    if network != "loopback":
        assert row["parts"]["online"]["relu"]["seconds"] > sites * (0.5e-3 if network == "lan" else 2e-3)


def test_bench_with_exact_truncation_is_the_reference(capsys, parties_as_threads):
    """With all ReLUs; a row says so, and a protocol that has it not is refused before anything starts."""
    arguments = ["resnet10 m=2", "--input", "1x8x8", "--images", "2", "--offline", "dealer", "--truncation", "exact"]
    assert run("bench", *arguments, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["truncation"] == "exact" and row["ring"]["largest"] == 0
    assert run("bench", *arguments, "--relu", "fss") == 2
    assert "ReLU fss does not truncate exactly: give --relu full or sign" in capsys.readouterr().err


def test_bench_of_a_run_measures_its_frontier_and_the_report_shows_it(capsys, study, parties_as_threads):
    assert run("bench", str(study.path), "--offline", "dealer") == 0
    shown = capsys.readouterr()
    assert "ring %" in shown.out and "no privacy against it" in shown.out and "linear     ReLUs" in shown.out
    measured = [record for record in study.candidates() if record.private]
    assert len(measured) == 2
    test = data.load("digits").test
    for record in measured:
        ring = record.private.ring
        assert ring.images == len(test) and ring.agreement >= 99.5
        assert abs(ring.float_accuracy - record.metrics.test_accuracy) < 0.6
    page = write_report([study], study.path / "report.html").read_text()
    assert "Private inference, measured" in page and "ring test, %" in page and page.count("<svg") >= 4
    assert page.count("<th>linear</th>") == 4 and "measured with" not in page
    before = {record.name: record.private for record in measured}
    assert run("bench", str(study.path), "--offline", "dealer", "--json") == 0  # again: nothing is measured twice
    assert {record.name: record.private for record in study.candidates() if record.private} == before
    assert run("bench", str(study.path), "--offline", "dealer", "--all") == 0
    assert {record.name: record.private for record in study.candidates() if record.private} == before
    *_, relus, online, ahead = gained_text(study.candidates(), int(test.labels[0])).splitlines()
    before, after = (one.private.row for one in sorted(measured, key=lambda one: one.name != "teacher"))
    assert f"{before.relus:,} → {after.relus:,} (" in relus
    for line, phase in ((online, "online"), (ahead, "offline")):
        for cost in (getattr(row.costs, phase) for row in (before, after)):
            assert duration(cost.seconds) in line and size(cost.bytes) in line


def test_bench_of_a_recipes_folder_measures_its_runs(capsys, study, tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "seed0").symlink_to(study.path)
    assert run("bench", str(study.path), "--offline", "dealer") == 0
    capsys.readouterr()
    before = {record.name: record.private for record in study.candidates()}
    assert run("bench", str(tmp_path / "recipe"), "--offline", "dealer") == 0  # nothing is measured twice
    assert "linear     ReLUs" in capsys.readouterr().out
    assert {record.name: record.private for record in study.candidates()} == before


def test_a_network_that_cannot_be_measured_keeps_no_other_from_it(capsys, study, monkeypatch):
    known = {record.name: record.private for record in study.candidates() if record.private}

    def measure(folder, dataset, asked, progress):
        if folder.name == "teacher":
            raise UserError("it is too large")
        return known[folder.name]

    monkeypatch.setattr(measurement, "measure", measure)
    assert run("bench", str(study.path), "--all", "--link", "8Gb/s,0.3ms") == 2
    shown = capsys.readouterr()
    assert "2/2 random-37: ring" in shown.err and "\nparelu: teacher cannot be measured: it is too large" in shown.err
    assert "linear     ReLUs" in shown.out, "what was measured is printed"


class InTheClear:
    """An engine without parties: the ring reference, off by a hundredth."""

    def check(self, options):
        pass

    def described(self, options):
        return {"relu": "native", "offline_mode": "none", "threat_model": "none at all"}

    def run(self, lowered, images, options):
        cost = Cost(2.0, {"client": 3e6, "server": 0.0}, 7, {"client": 1.0, "server": 0.0})
        return Measurement(reference.run(lowered, images).logits + 0.01, Costs(total=cost))


@pytest.fixture
def two_engines(monkeypatch):
    delphi = engines.engines()["delphi"]
    monkeypatch.setattr(engines, "engines", lambda: {"delphi": delphi, "clear": InTheClear()})


def test_bench_puts_engines_side_by_side(capsys, two_engines, parties_as_threads):
    arguments = ["resnet10 m=2", "--input", "1x8x8", "--keep", "0.3", "--images", "4", "--offline", "dealer"]
    assert run("bench", *arguments, "--engine", "delphi,clear,delphi") == 0
    text = capsys.readouterr().out
    head, *rows = [line for line in text.splitlines() if line.startswith(("engine", "delphi", "clear"))]
    assert [row.split()[0] for row in rows] == ["delphi,", "clear"]
    assert [row.index(trust) for row, trust in zip(rows, ("semi-honest", "none at all"), strict=True)] == [
        head.index("threat model")
    ] * 2
    assert "no privacy against it" in rows[0] and "2 s" in rows[1] and "3 MB" in rows[1]
    apart = float(re.findall(r"differs by (\d\.\d+) at most; of 4 images", text)[0])
    assert 0.01 <= apart < 0.03
    assert run("bench", *arguments, "--engine", "clear", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["ring"]["largest"] == pytest.approx(0.01) and row["ring"]["same_of_all"] == 4
    assert run("bench", *arguments, "--engine", "clear") == 0
    text = capsys.readouterr().out
    assert re.search(r"^  total +2 s +1 s +0 ms +3 MB +0 B +7$", text, re.MULTILINE) and "layer by layer" not in text


def test_the_report_draws_a_runs_engines(capsys, study, two_engines, parties_as_threads):
    own = [str(study.path), "--offline", "dealer"]
    assert run("bench", *own) == 0
    assert "clear, whole" not in capsys.readouterr().out
    assert "Engines side by side" not in write_report([study], study.path / "report.html").read_text()
    ours = {record.name: record.private.row for record in study.candidates() if record.private}
    assert run("bench", *own, "--engine", "clear") == 0
    assert capsys.readouterr().out.count("clear, whole") == len(ours) > 0
    measured = {record.name: record.private for record in study.candidates() if record.private}
    assert {name: value.row for name, value in measured.items()} == ours, "nothing is measured twice"
    page = write_report([study], study.path / "report.html").read_text()
    assert "Engines side by side" in page and page.count('<td class="text">clear, whole</td>') == len(ours)
    assert page.count(">none at all<") == len(ours)


@pytest.mark.parametrize(("relu", "truncation"), [("sign", "local"), ("sign", "exact"), ("full", "exact")])
def test_secure_inference_of_a_trained_resnet_is_the_replayed_reference(study, relu, truncation):
    """30 test images, to the bit; against the seedless reference the largest error is small, or none."""
    from two_parties import Pair

    candidate = study.candidate("teacher")
    lowered = measurement.lowered(study.folder("teacher"), candidate, WIDE)
    images = data.load("digits").test.images[:30]
    expected = reference.run(lowered, images).logits
    errors = []
    with Pair(lowered, relu, truncation=truncation) as pair:
        for image, logits in zip(images, expected, strict=True):
            result, shares = pair.infer(image)
            assert np.array_equal(result, reference.replay(lowered, image, shares, relu, truncation))
            errors.append(np.abs(lowered.program.ring.decode(result) * lowered.program.output_unit - logits).max())
    assert pair.done == 30 and max(errors) < (0.1 if truncation == "local" else 1e-15)


def test_a_program_of_each_ring_is_kept_and_pins_stay(study):
    """A measurement in another ring does not change what a server has published."""
    folder, candidate = study.folder("teacher"), study.candidate("teacher")
    first, again = ([measurement.lowered(folder, candidate, Ring(bits)) for bits in WIDTHS] for _ in range(2))
    assert [lowered.program.ring.bits for lowered in first] == list(WIDTHS)
    assert [each.commitment for each in first] == [each.commitment for each in again]
    assert len({each.program.digest for each in first + again}) == len(WIDTHS)


def test_inspect_prints_the_fixed_point_plan(capsys, study):
    assert run("inspect", str(study.folder("teacher"))) == 0
    text = capsys.readouterr().out
    assert (
        f"ring Z_2^{ring_for(DEFAULT).bits}, 10 fraction bits" in text
        and "any wraps in an inference with probability ≤" in text
    )
    assert run("inspect", "resnet10 m=2", "--input", "1x8x8", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["private"]["wrap_bound"] < 1e-4 and value["unsupported"] == []
    assert all(2 <= site["bits"] <= value["private"]["ring_bits"] for site in value["private"]["sites"])


def test_inspect_counts_what_has_no_lowering_and_names_it(capsys, tmp_path, monkeypatch):
    (tmp_path / "curved.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=2, dilation=2), nn.ReLU(), nn.GroupNorm(1, 4),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run("inspect", "curved:net", "--input", "1x8x8", "--classes", "3") == 0
    shown = capsys.readouterr().out
    assert "256" in shown and "2: group_norm is not supported; --replace groupnorm=batchnorm" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench", "resnet19"), "unknown network 'resnet19'"),
        (("bench", "resnet10 m=2", "--keep", "1.5"), "--keep 1.5 is not a fraction from 0 to 1"),
        (("bench", "resnet10 m=2", "--images", "0"), "--images 0"),
        (("serve", "nowhere"), "nowhere holds no candidate"),
        (("serve", "nowhere", "--host", "0.0.0.0"), "give --tls DIR"),
        (("serve", "nowhere", "--port", "99999"), "--port from 0 to 65535"),
        (("infer", "nowhere", "a.png"), "address 'nowhere' is not HOST:PORT; write localhost:7000"),
        (("infer", "example.test:7000", "a.png"), "give --tls DIR"),
        (("infer", "localhost:1", "a.png"), "is `parelu serve` running there?"),
        (("infer", "localhost:1"), "no image given"),
        (("infer", "localhost:1", "a.png", "--pin", ""), "pin '' is not the 64 hexadecimal digits"),
        (("infer", "localhost:1", "a.png", "--pin", "1f3a"), "pin '1f3a' is not the 64 hexadecimal digits"),
        (("serve", "nowhere", "--audit", "1"), "--audit 1 is not a share"),
        (("serve", "nowhere", "--budget", "-1"), "--budget -1 is not a number of inferences"),
        (("clients", "nowhere"), "nowhere: nobody has been served from there"),
        (("bench", "resnet10 m=2", "--engine", "delphi,spu"), "unknown engine 'spu'; known are delphi, spu-aby3"),
        (("bench", "resnet10 m=2", "--engine", "spu-semi2k", "--link", "lan"), "spu-semi2k cannot shape a link"),
        (("bench", "resnet10 m=2", "--batch", "2"), "give a number that divides --images 5"),
        (("bench", "resnet10 m=2", "--queries", "0"), "give 1 or more"),
        (("serve", "nowhere", "--processes", "65"), "--processes from 1 to 64"),
        (("serve", "nowhere", "--drain", "soon"), "--drain 'soon' is not a time such as 30s"),
        (("serve", "nowhere", "--metrics-port", "70000"), "--metrics-port from 0 to 65535"),
        (("prepare", "localhost:1", "0", "--stock-dir", "s"), "give a count from 1 to 10000"),
        (("prepare", "localhost:1", "3", "--stock-dir", "s"), "is `parelu serve` running there?"),
        (("infer", "localhost:1", "a.png", "--tls", "nowhere"), "ca.pem is missing"),
    ],
)
def test_bad_input(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)


def said(server):
    """The lines of a server until it listens."""
    lines = [server.stderr.readline()]
    while lines[-1] and " listening on " not in lines[-1]:
        lines.append(server.stderr.readline())
    return lines


@pytest.mark.slow
def test_stocks_of_two_processes(capfd, study, tmp_path):
    """Two server processes and two of the client's fill a stock, which then serves images."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from parelu.cli.main import main; main()"]

    options = ("--port", "0", "--stock", "6", "--stock-dir", str(tmp_path / "server"), "--processes", "2")
    server = subprocess.Popen(
        [*command, "serve", str(study.folder("teacher")), *options], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert server.stderr is not None
    try:
        lines = "".join(said(server))
        assert "making hints for clients, once: " in lines and re.search(
            r"hints \w{16}…: .* to each client, once", lines
        )
        assert lines.count("hints") == 3, "by one of the two processes"
        port = lines.rpartition(":")[2].partition(",")[0]
        address, ours = f"localhost:{port}", tmp_path / "client"
        assert "the server keeps 6 inferences" in refused(capfd, "prepare", address, "7", "--stock-dir", str(ours))
        assert run("prepare", address, "6", "--stock-dir", str(ours), "--jobs", "2") == 0
        said_once = capfd.readouterr().err
        assert f"6 in {ours}, 6 made in" in said_once
        assert said_once.count("hints from the server, once: ") == 1, "for both processes"
        assert run("prepare", address, "6", "--stock-dir", str(ours)) == 0
        assert "0 made in" in capfd.readouterr().err
        image = tmp_path / "0.png"
        Image.fromarray(data.load("digits").test.images[0, 0].numpy()).save(image)
        assert run("infer", address, str(image), "--stock-dir", str(ours)) == 0
        assert "0 prepared" in capfd.readouterr().err
        pieces = [
            len([p for p in (tmp_path / party).rglob("*") if len(p.name) == 32 and p.is_file()])
            for party in ("client", "server")
        ]
        assert pieces == [5, 5]
    finally:
        server.send_signal(signal.SIGTERM)
        rest = server.stderr.read()
        server.stderr.close()
        assert server.wait(20) == 0
    assert "Traceback" not in rest


@pytest.mark.slow
def test_processes_are_replaced_and_none_outlives_the_first(study):
    """Of a killed server the others end by themselves, and with them the last that has the other end of the pipe."""
    command = [sys.executable, "-c", "from parelu.cli.main import main; main()", "serve", str(study.folder("teacher"))]
    server = subprocess.Popen([*command, "--port", "0", "--processes", "2"], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    lines = said(server)
    assert " 1 of this server is ready" in server.stderr.readline()
    tasks = Path(f"/proc/{server.pid}/task").glob("*/children")
    children = [child for task in tasks for child in task.read_text().split()]
    (other,) = [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
    os.kill(other, signal.SIGKILL)
    assert re.search(
        r" error process 1 of this server died \(status -9\); another starts in ", server.stderr.readline()
    )
    assert " 1 of this server is ready" in server.stderr.readline()
    port = lines[-1].split(",")[0].rpartition(":")[2]
    with pytest.raises(UserError, match=r"cannot listen .*in use"):
        listen("127.0.0.1", int(port))
    server.kill()
    _, rest = server.communicate(timeout=60)
    assert "Traceback" not in rest
    for listener in listen("127.0.0.1", int(port)):
        listener.close()


def test_serve_and_infer_as_two_processes(capsys, study, tmp_path):
    """What comes after the first inference is asked from this process: one costs seconds to start."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from parelu.cli.main import main; main()"]

    def parelu(*arguments):
        return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, env=environment)

    certs = tmp_path / "certs"
    assert run("certs", str(certs)) == 0
    images = data.load("digits").test.images[:2, 0].numpy()
    files = []
    pictures = Image.fromarray(images[0]), Image.fromarray(images[1].astype(np.uint16) * 257)  # 8 bits, 16 bits
    for number, picture in enumerate(pictures):
        files.append(tmp_path / f"{number}.png")
        picture.save(files[-1])
    large = torch.from_numpy(images[:1, None]).repeat_interleave(4, 2).repeat_interleave(4, 3)
    files.append(tmp_path / "photo.jpg")
    Image.fromarray(large[0, 0].numpy()).convert("RGB").save(files[-1], quality=100)
    (tmp_path / "text.png").write_text("text")
    options = (
        "--port",
        "0",
        "--tls",
        str(certs),
        "--offline",
        "dealer",
        "--stock",
        "1",
        "--budget",
        "6",
        "--reveal",
        "exact",
    )
    server = subprocess.Popen(
        [*command, "serve", str(study.folder("teacher")), *options], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert server.stderr is not None
    try:
        lines = said(server)
        pin = re.search(r" pin (\w{64}): ", lines[0])[1]
        address = f"localhost:{lines[-1].split(':')[-1].strip()}"
        done = parelu("infer", address, *files, "--tls", certs, "--pin", pin, "--offline", "dealer", "--json")
        rows = json.loads(done.stdout)
        lowered = measurement.lowered(study.folder("teacher"), study.candidate("teacher"), WIDE)
        photo = torch.from_numpy(read_image(files[2], (1, 8, 8)))[None]
        expected = reference.run(lowered, torch.cat([torch.from_numpy(images)[:, None], photo]))
        assert [row["label"] for row in rows] == expected.labels.tolist()
        assert np.abs(np.array([row["logits"] for row in rows]) - expected.logits).max() < 0.1
        for arguments, message in (
            ((tmp_path / "text.png",), "not a readable image"),
            ((files[0], "--pin", "0" * 64), "is not the pinned"),
            ((files[0], *files * 2), "7 inferences are more than the 3 that the server's budget leaves"),
        ):
            capsys.readouterr()
            assert run("infer", address, *map(str, arguments), "--tls", str(certs), "--offline", "dealer") == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert message in line
        asked = ["infer", address, str(files[0]), "--tls", str(certs)]
        assert "offers offline 'dealer', which trusts a third party" in refused(capsys, *asked)
        capsys.readouterr()
        assert run(*asked, "--offline", "dealer") == 0
        assert capsys.readouterr().out.startswith(str(files[0]) + ": class ")
    finally:
        server.send_signal(signal.SIGTERM)
        rest = server.stderr.read()
        server.stderr.close()
        assert server.wait(20) == 0
    assert " info stopping; clients that are served: " in rest and "Traceback" not in rest
    client = "CN=parelu test client; by CN=parelu test authority"
    assert f"3 inferences, 3 offline phases, {client}" in "".join(lines) + rest
    assert run("clients", str(study.folder("teacher"))) == 0
    shown = capsys.readouterr().out
    assert re.search(re.escape(client) + r" +4 +4 +0 +0$", shown.strip()), shown
    assert run("clients", str(study.folder("teacher")), "--forget", client) == 0
    assert client not in capsys.readouterr().out
    assert list(Path(study.path).rglob("*.sock")) == []
