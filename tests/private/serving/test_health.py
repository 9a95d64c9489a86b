"""What a server says of itself over HTTP, and that its figures are those of what it did."""

import http.client
import threading

import pytest
from deployed import deployed, until
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from two_parties import Residual, images_of, lowered_of, ready

from parelu.errors import ProtocolError, UserError
from parelu.private.serving.client import Client
from parelu.private.serving.health import Health
from parelu.private.serving.metrics import Metrics, added, text, without_gauges
from parelu.private.serving.watcher import ENDS, Standing

LOWERED = lowered_of(ready(Residual(), (1, 6, 6), lambda u: u < 0.4))
IMAGES = images_of(3, (1, 6, 6))


def samples(page):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_figures_are_those_of_what_was_done():
    held = []
    metrics = Metrics(lambda: held[0].standing)
    with deployed(LOWERED, clients=1, budget=3, watcher=metrics, ahead=1) as (server, lines):
        held.append(server)
        assert server.prepared.wait(1, 20)
        assert samples(text([metrics.snapshot()]))["parelu_prepared", ("model", "")] == 1
        with Client("127.0.0.1", server.port, offline="dealer") as client:
            client.prepare(3)
            assert samples(text([metrics.snapshot()]))["parelu_session_material",] == 3
            client.predict(IMAGES, batch=2)
            assert samples(text([metrics.snapshot()]))["parelu_clients",] == 1
            traffic = client.session.channel.traffic
        assert until(lambda: lines)
        with pytest.raises(ProtocolError), Client("127.0.0.1", server.port, offline="dealer") as client:
            client.session.left = 5
            client.predict(IMAGES[:1])
        assert until(lambda: len(lines) == 2)
        found = samples(text([metrics.snapshot()]))
    assert found["parelu_inferences_total", ("model", "")] == 3
    assert found["parelu_online_seconds_count", ("model", "")] == 2
    assert found["parelu_offline_phases_total", ("model", "")] == found["parelu_offline_seconds_count", ("model", "")]
    assert found["parelu_connections_total",] == 1 and found["parelu_errors_total", ("kind", "refused")] == 1
    online = sum(passed.received for (phase, _), passed in traffic.items() if phase == "online")
    assert found["parelu_bytes_total", ("direction", "to_client"), ("phase", "online")] >= online > 0
    assert found["parelu_clients",] == 0


FIGURES = st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 9), max_size=2)


@settings(max_examples=20)
@given(st.lists(FIGURES, max_size=3), st.lists(st.sampled_from(ENDS), max_size=5))
def test_processes_are_added_up(inferences, ends):
    """One process that did it all says the same as several that did a part each."""
    alone = Metrics(lambda: Standing(0, 0, 0, {}))
    parts = []
    for counts in inferences:
        part = Metrics(lambda: Standing(0, 0, 0, {}))
        for model, count in counts.items():
            for one in (alone, part):
                one.inferred(model, count, 0.5)
        for how in ends:
            for one in (alone, part):
                one.ended(how)
        parts.append(part.snapshot())
    if parts:
        assert samples(text(parts)) == samples(text([alone.snapshot()]))
        gone = without_gauges(added(parts))
        assert {name for name, *_ in gone}.isdisjoint({"parelu_clients"}) and samples(text([gone]))


def get(health, path, method="GET"):
    connection = http.client.HTTPConnection(*health.address.split(":"), timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_pages():
    wrong = {"alive": "", "ready": ""}
    health = Health("127.0.0.1", 0, lambda: wrong["alive"], lambda: wrong["ready"], lambda: b"x 1\n")
    try:
        assert get(health, "/healthz") == (200, b"ok\n") == get(health, "/readyz?a=b")
        wrong["ready"] = "stopping"
        assert get(health, "/readyz") == (503, b"stopping\n") and get(health, "/healthz")[0] == 200
        assert get(health, "/metrics") == (200, b"x 1\n") and get(health, "/metrics", "HEAD") == (200, b"")
        assert get(health, "/")[0] == 404 and get(health, "/metrics", "POST")[0] == 501
        port = int(health.address.split(":")[1])
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: no metrics there .*give another --metrics-port"):
            Health("127.0.0.1", port, str, str, bytes)
    finally:
        health.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "health"]
