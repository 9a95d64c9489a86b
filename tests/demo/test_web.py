"""The page's server: who is answered, what a page may do, and what it is told."""

import base64
import hashlib
import http.client
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import parelu.demo
from parelu.demo.show import MOST_LISTENERS, WAITING, Events
from parelu.demo.web import IMAGES, Page
from parelu.errors import UserError

SOURCES = Path(parelu.demo.__file__).parent
IMAGE = bytes(range(48))  # 4×4 in colour


class Asked:
    """Stands for a demonstration that is ready once."""

    def __init__(self) -> None:
        self.events, self.images = Events(), []

    def ask(self, image: np.ndarray) -> bool:
        self.images.append(image)
        return len(self.images) == 1


@pytest.fixture
def page():
    images = torch.arange(3 * 48).to(torch.uint8).view(3, 3, 4, 4)
    found = Page(Asked(), images, torch.tensor([5, 6, 7]))  # pyright: ignore[reportArgumentType]
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.close()
    thread.join()


def talk(page: Page, path: str = "", *, method: str = "GET", body: bytes | None = None, **headers: str):
    """The status, headers and body of an answer; a header that is "" is left out."""
    connection = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=10)
    own = f"127.0.0.1:{page.server_port}"
    sent = {"Host": own, **({"Origin": f"http://{own}"} if method == "POST" else {}), **headers}
    target = path if path.startswith("/") else f"/{page.token}/{path}"
    connection.putrequest(method, target, skip_host=True)
    for name, value in sent.items():
        if value:
            connection.putheader(name.replace("_", "-"), value)
    if body is not None and "Content_Length" not in headers:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    response = connection.getresponse()
    answer = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return answer


def test_the_page_may_do_nothing_but_be_itself(page: Page):
    """No request leaves the machine, whatever a name or an image has in it: the policy says so, and nothing asks."""
    status, headers, body = talk(page)
    policy = headers["Content-Security-Policy"]
    assert status == 200 and policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "*" not in policy
    sheet = re.search(rb"<style>(.*?)</style>", body, re.DOTALL)
    assert sheet and base64.b64encode(hashlib.sha256(sheet[1]).digest()).decode() in policy
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers
    for name in ("page.html", "page.js"):
        text = (SOURCES / name).read_text()
        assert not re.search(r"https?://|//[a-z]+\.|style=| on[a-z]+=|innerHTML|eval\(", text), name
    assert talk(page, "page.js")[1]["Content-Type"].startswith("text/javascript")


@pytest.mark.parametrize(
    ("status", "path", "headers"),
    [
        (404, "/", {}),
        (404, "/events", {}),
        (404, "/wrong/events", {}),
        (404, "/wrong/../events", {}),
        (403, "", {"Host": "evil.example"}),
        (403, "", {"Host": "127.0.0.1"}),
        (403, "", {"Host": ""}),
        (403, "images/0", {"Origin": "http://evil.example"}),
        (403, "images/0", {"Sec_Fetch_Site": "cross-site"}),
        (403, "page.js", {"Sec_Fetch_Site": "same-site"}),
        (404, "../page.html", {}),
        (404, "images/-1", {}),
        (404, "images/0x1", {}),
    ],
)
def test_what_is_not_of_the_page_is_refused(page: Page, status: int, path: str, headers: dict[str, str]):
    found, _, body = talk(page, path, **headers)
    assert found == status
    assert page.token.encode() not in body and b"parelu demo: " in body


def test_an_image_is_taken_from_the_page_alone(page: Page):
    own = f"http://127.0.0.1:{page.server_port}"
    for headers in ({"Origin": ""}, {"Origin": "null"}, {"Origin": own, "Sec_Fetch_Site": "cross-site"}):
        assert talk(page, "ask", method="POST", body=IMAGE, **headers)[0] == 403
    for body, length in ((IMAGE[:-1], "47"), (IMAGE + b"0", "49"), (b"", "-48"), (b"", "")):
        assert talk(page, "ask", method="POST", body=body, Content_Length=length)[0] == 400
    assert talk(page, "events", method="POST", body=IMAGE)[0] == 404
    assert not page.show.images  # pyright: ignore[reportAttributeAccessIssue]
    assert talk(page, "ask", method="POST", body=IMAGE)[0] == 202
    (image,) = page.show.images  # pyright: ignore[reportAttributeAccessIssue]
    assert image.shape == (3, 4, 4) and bytes(image.transpose(1, 2, 0).tobytes()) == IMAGE
    status, _, body = talk(page, "ask", method="POST", body=IMAGE)
    assert status == 409 and b"not ready" in body
    assert talk(page, "ask", method="POST", body=IMAGE, Host=f"localhost:{page.server_port}")[0] == 403, "other origin"


def test_the_images_to_choose_from_go_round(page: Page):
    batch = json.loads(talk(page, "images/0")[2])
    assert batch["shape"] == [4, 4, 3] and len(batch["images"]) == IMAGES and batch["labels"][:4] == [5, 6, 7, 5]
    pixels = np.frombuffer(base64.b64decode(batch["images"][1]), np.uint8).reshape(4, 4, 3)
    assert np.array_equal(pixels.transpose(2, 0, 1), page.images[1].numpy())
    assert json.loads(talk(page, "images/999999999999")[2])["labels"]


def test_a_page_that_comes_late_is_told_what_is_still_true(page: Page):
    events = page.show.events
    events.tell("state", keeps=True, stage="starting")
    events.tell("layer", network="full", layer="relu")
    events.tell("network", network="full", keeps=True, title="one")
    events.tell("state", keeps=True, stage="ready")
    connection = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=10)
    connection.request("GET", f"/{page.token}/events")
    response = connection.getresponse()
    assert response.getheader("Content-Type") == "text/event-stream; charset=utf-8"
    lines = [response.readline().decode().strip() for _ in range(6)]
    assert lines == [
        "event: network",
        'data: {"network": "full", "title": "one"}',
        "",
        "event: state",
        'data: {"stage": "ready"}',
        "",
    ]
    events.tell("answer", network="full", label=3)
    assert response.readline() == b"event: answer\n"
    connection.close()


def test_a_page_that_does_not_read_is_dropped_and_too_many_are_refused():
    events = Events()
    with events.listening() as slow:
        for _ in range(WAITING + 5):
            events.tell("layer")
        assert slow.qsize() == WAITING and not events._listeners
    with pytest.raises(UserError, match=f"{MOST_LISTENERS} pages are open"), _many(events):
        pass
    assert not events._listeners


def _many(events: Events):
    from contextlib import ExitStack

    stack = ExitStack()
    try:
        for _ in range(MOST_LISTENERS + 1):
            stack.enter_context(events.listening())
    except BaseException:
        stack.close()
        raise
    return stack


def test_a_port_in_use_is_named(page: Page):
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{page.server_port}: cannot listen .*; give another --port"):
        Page(Asked(), page.images, page.labels, page.server_port)  # pyright: ignore[reportArgumentType]
