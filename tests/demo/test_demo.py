"""The demonstration between its parties, and as a person sees it in a browser."""

import base64
import http.client
import multiprocessing
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import browser  # noqa: F401 - a fixture
from commands import refused

from parelu import api, data, demo
from parelu.client import make_certificates
from parelu.demo import networks, parties, show
from parelu.errors import ProtocolError, UserError
from parelu.network.images import fit
from parelu.private.lowering.encode import encode_images
from parelu.private.transport.channel import HEADER
from parelu.private.transport.link import Link

pytestmark = pytest.mark.usefixtures("compiled")


class ServerThread(parties.ServerProcess):
    """The server in a thread of this process: to start another costs more than these networks."""

    def __init__(self, folders, certificates, link) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._thread = threading.Thread(target=parties._serve, args=(theirs, folders, certificates, link))
        self._thread.start()
        self.places = self._pipe.recv()

    def close(self) -> None:
        self._pipe.close()
        self._thread.join()


@pytest.fixture(scope="module")
def page():
    """Of the two networks that come with parelu, ready."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(show, "ServerProcess", ServerThread)
        torch.set_num_threads(1)
        with demo.page(None, Link()) as found:
            thread = threading.Thread(target=found.serve_forever, args=(0.01,))
            thread.start()
            yield found
            found.shutdown()
            thread.join()


def label_of(key: str, image: np.ndarray) -> int:
    """What the float network says of a uint8 image (C, H, W)."""
    candidate = api.load(networks.packaged()[key])
    mean, std = (tuple(candidate.preprocessing[name]) for name in ("mean", "std"))
    with torch.no_grad():
        fitted = data.resize(torch.as_tensor(image)[None], tuple(candidate.spec.input[1:]))
        return int(candidate.network()(data.normalise(fitted, mean, std)).argmax())


def told_until(told, name: str, wanted=lambda content: True) -> list:
    """The events up to the first of that name that is wanted."""
    found = []
    while not found or not (found[-1][0] == name and wanted(found[-1][1])):
        found.append(told.get(timeout=280))
    return found


def test_both_networks_answer_and_their_figures_add_up(page):
    image = page.images[0].numpy()
    bodies = []
    with page.show.events.listening() as told:
        for _ in range(2):
            told_until(told, "state", lambda content: content["stage"] == "ready")
            assert page.show.ask(image) and not page.show.ask(image), "one at a time"
            found = told_until(told, "answer", lambda content: content["network"] == networks.REDUCED)
            for key in networks.packaged():
                own = [(name, content) for name, content in found if content.get("network") == key]
                (answer,) = (content for name, content in own if name == "answer")
                layers = [content for name, content in own if name == "layer" and content["phase"] == "online"]
                assert answer["label"] == label_of(key, image) and sum(answer["shares"]) == pytest.approx(1)
                assert sum(layer["bytes"] for layer in layers) == answer["bytes"]
                assert sum(layer["seconds"] for layer in layers) <= answer["seconds"]
                bodies += [base64.b64decode(content["body"]) for name, content in own if name == "wire"]
    assert len(bodies) == len(set(bodies)) == 4 and {len(body) for body in bodies} == {8 * 3 * 16 * 16}
    counts = np.bincount(np.frombuffer(b"".join(bodies), np.uint8), minlength=256)
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2).sum() / expected < 255 + 6 * np.sqrt(2 * 255), "uniform bytes"


def test_what_is_shown_as_received_is_the_image_less_the_mask(page, tmp_path):
    """Of the message that was sent, by the client's own mask."""
    make_certificates(tmp_path / "certificates")
    folder = tmp_path / "network"
    shutil.copytree(networks.packaged()[networks.REDUCED], folder)
    image = fit(page.images[1].numpy(), (3, 16, 16))
    with ServerThread({"one": folder}, tmp_path / "certificates", Link()) as server:
        told: list = []
        with parties.Client(
            server.places["one"], tmp_path / "certificates", tmp_path / "hints", Link(), lambda *args: told.append(args)
        ) as client:
            client.prepare()
            (material,) = client._client.session.prepared
            mask = material._content.mask.copy()
            answer = client.ask(image)
            sent = np.frombuffer(answer.received, np.uint64) + mask.reshape(-1)
            assert np.array_equal(sent.view(np.int64), encode_images(client.program, image[None]).reshape(-1))
            assert {phase for phase, *_ in told} >= {"offline", "online"}


def test_a_message_that_was_not_sent_is_no_picture():
    first, second = HEADER.pack(b"comd", 0, 3) + b"abc", HEADER.pack(b"inpt", 1, 2) + b"xy"
    assert parties._body(first + second, b"inpt") == b"xy"
    with pytest.raises(ProtocolError, match="no message b'inpt' was sent"):
        parties._body(first, b"inpt")


def test_a_network_that_cannot_be_served_ends_the_demonstration(tmp_path):
    (tmp_path / "candidate.json").write_text("{}")
    (tmp_path / "candidate.safetensors").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(show, "ServerProcess", _RefusedServer)
        failing = show.Demonstration({"full": show.Shown("x", tmp_path, 1.0, (3, 9, 9))}, Link(), tmp_path / "own")
        with failing.events.listening() as told:
            *_, (_, content) = told_until(told, "state", lambda content: content["stage"] == "failed")
        failing.close()
    assert content["message"] == "the server's process: no" and not failing.ask(np.zeros((3, 28, 28), np.uint8))


class _RefusedServer:
    def __init__(self, *_: object) -> None:
        raise UserError("the server's process: no")


def test_the_networks_of_a_run_are_all_relus_and_the_knee(finished):
    run, _ = finished
    chosen = networks.of_run(run.path)
    relus = {key: api.count(api.load(folder)).relus for key, folder in chosen.items()}
    assert chosen[networks.FULL] == run.folder("teacher") and 0 < relus[networks.REDUCED] < relus[networks.FULL]


def test_what_cannot_be_shown_is_refused(capsys, tmp_path):
    assert "no run folder" in refused(capsys, "demo", str(tmp_path / "none"))
    assert "--port from 0 to 65535" in refused(capsys, "demo", "--port", "99999")
    assert "link 'fast'" in refused(capsys, "demo", "--link", "fast")


def test_the_packaged_networks_are_small_and_say_what_they_gain():
    folders = networks.packaged()
    size = sum(path.stat().st_size for folder in folders.values() for path in folder.iterdir())
    assert size < 500_000
    full, reduced = (api.load(folder) for folder in folders.values())
    assert api.count(reduced).relus < api.count(full).relus / 5
    assert full.trained.test_accuracy > 90 and reduced.trained.test_accuracy > full.trained.test_accuracy - 3


# As a person sees it


@pytest.fixture
def tab(browser, page):  # noqa: F811 - the fixture
    """A page of the browser, which tells of every error and every request."""
    opened = browser.new_page(viewport={"width": 1100, "height": 900})
    opened.trouble, opened.asked = [], []
    opened.on("console", lambda message: opened.trouble.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: opened.trouble.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(page.address)
    opened.wait_for_selector("#ask:enabled", timeout=280_000)
    yield opened
    assert not opened.trouble
    assert all(url.startswith(page.address) for url in opened.asked), "no request leaves the page's own server"
    opened.close()


def answers(tab) -> list[int]:
    """What both networks say, when they have."""
    tab.locator("#gain", has_text="fewer ReLUs").wait_for(timeout=120_000)
    return [int(re.match(r"\d", text)[0]) for text in tab.locator(".label").all_inner_texts()]  # pyright: ignore


def pixels(tab) -> np.ndarray:
    """The pad's image, uint8 (C, H, W)."""
    found = tab.evaluate("Array.from(picture(document.getElementById('pad')))")
    return np.array(found, np.uint8).reshape(28, 28, 3).transpose(2, 0, 1)


def test_an_image_is_picked_and_asked(tab, page):
    tab.locator("#choices input").nth(3).check(force=True)
    image = pixels(tab)
    assert any(np.array_equal(image, known.numpy()) for known in page.images), "byte for byte a test image"
    tab.click("#ask")
    assert answers(tab) == [label_of(key, image) for key in networks.packaged()]
    assert "all 6,144 bytes" in tab.inner_text("#received")
    assert re.search(r"7\.9\d of 8 bits of entropy", tab.inner_text("#received"))
    for card in tab.locator(".card").all():
        assert card.locator(".figures b").all_inner_texts()[0].endswith("s")
        assert all(row.locator("td").nth(4).inner_text() for row in card.locator("tbody tr").all()), (
            "bytes of each layer"
        )


def test_by_keyboard_alone(tab):
    """An image is drawn and asked without a pointer."""
    tab.focus("#clear")
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "pad"
    before = pixels(tab)
    for key in ("ArrowUp", "ArrowUp", " ", *["ArrowDown"] * 9, " "):
        tab.keyboard.press(key)
    assert (pixels(tab) != before).any() and tab.locator("#choices input:checked").count() == 0
    tab.focus("#choices input")
    tab.keyboard.press(" ")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#choices input").nth(1).is_checked()
    tab.focus("#ask")
    tab.keyboard.press("Enter")
    assert len(answers(tab)) == 2


def test_another_page_sees_the_answer_but_not_the_image(tab, page, browser):  # noqa: F811 - the fixture
    other = browser.new_page()
    other.goto(page.address)
    other.wait_for_selector("#ask:enabled", timeout=280_000)
    tab.locator("#choices input").nth(2).check(force=True)
    tab.click("#ask")
    mine = answers(tab)
    assert answers(other) == mine
    assert "right" not in other.locator(".label").all_inner_texts()[0], "it does not know what was asked"
    assert not other.evaluate("picture(document.getElementById('seen')).some(byte => byte)")
    other.close()


@pytest.mark.parametrize("width", [360, 760, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_and_text_can_be_read(tab, width, scheme):
    tab.set_viewport_size({"width": width, "height": 800})
    tab.emulate_media(color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    for card in tab.locator(".card").all():
        assert card.evaluate("card => card.scrollWidth <= card.clientWidth")
    for selector in (".soft", ".label", "th", "#ask", "#gain"):
        assert tab.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector


CONTRAST = """element => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const linear = c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;  // WCAG 2.2, relative luminance
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  let behind = element, colour = null;
  while (behind && !colour) {
    const rgba = parse(getComputedStyle(behind).backgroundColor);
    if (rgba.length < 4 || rgba[3] > 0) colour = rgba;
    behind = behind.parentElement;
  }
  const both = [light(parse(getComputedStyle(element).color)), light(colour ?? [255, 255, 255])];
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}"""


@pytest.mark.slow
def test_the_command_runs_two_processes_and_leaves_none():
    command = [sys.executable, "-m", "parelu", "demo", "--link", "loopback"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        address = re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/[\w-]{20,}/)\n", process.stdout.readline())
        assert address
        connection = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=120)
        connection.request("GET", f"{address[2]}events")
        response = connection.getresponse()
        while b'"ready"' not in response.readline():
            pass
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        started = [Path("/proc") / number for number in children.read_text().split()] if children.exists() else []
        connection.close()
        process.terminate()  # an interrupt may be ignored by whoever started the tests, and then is here too
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in said, said
    assert not any(child.exists() for child in started)
