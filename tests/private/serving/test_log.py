"""Lines of a server: whole, one at a time, about a connection, and without any secret."""

import json
import logging
import os
import threading

import numpy as np
import pytest
from deployed import deployed, until
from two_parties import Residual, images_of, lowered_of, ready

from parelu.errors import ProtocolError, UserError
from parelu.private.crypto import prg
from parelu.private.serving import log as logs
from parelu.private.serving.client import Client

LOWERED = lowered_of(ready(Residual(), (1, 6, 6), lambda u: u < 0.4))
IMAGES = images_of(2, (1, 6, 6))


def logger_to(descriptor, form=logs.Json):
    handler = logs.Lines(descriptor)
    handler.setFormatter(form())
    logger = logging.Logger("lines", logging.DEBUG)
    logger.addHandler(handler)
    return logger


@pytest.fixture
def piped():
    """(a logger as JSON, a function that closes it and gives its lines)."""
    read, write = os.pipe()

    def lines():
        os.close(write)
        with open(read) as file:  # noqa: PTH123
            return file.read().splitlines()

    return logger_to(write), lines


def test_a_session_leaves_no_secret_in_the_log(piped, monkeypatch):
    logger, lines = piped
    secrets, real = [], os.urandom

    def noted(count):
        secrets.append(real(count))
        return secrets[-1]

    monkeypatch.setattr(prg.os, "urandom", noted)
    with deployed(LOWERED, offline="seal", log=logger) as (server, _):
        with Client("127.0.0.1", server.port) as client:
            logits = client.predict(IMAGES)
        with pytest.raises(ProtocolError), Client("127.0.0.1", server.port) as client:
            client.session.channel.send("comd", IMAGES[0].numpy().tobytes()[:8])
            client.session.channel.receive("none", 0)
        assert until(lambda: not len(server._connections)) and len(secrets) > 10
    found = lines()
    text = "\n".join(found)
    for secret in [seed for seed in secrets if len(seed) >= 8] + [IMAGES[0].numpy().tobytes()]:
        for shown in (secret.hex(), repr(secret)[2:-1], str(list(secret))[1:-1]):
            assert shown[:24] not in text
    assert not any(str(float(logit)) in text for logit in logits.reshape(-1))
    first, second = map(json.loads, found)
    assert first["end"] == "served" and first["message"].startswith("2 inferences, 2 offline phases")
    assert second["end"] == "protocol" and second["level"] == "warning"
    assert first["connection"] != second["connection"] and first["peer"].startswith("127.0.0.1:")
    assert first["time"].endswith("Z") and first["process"] == os.getpid()


def test_lines_of_many_threads_do_not_merge(piped):
    logger, lines = piped

    def write(number):
        for count in range(20):
            with logs.about(connection=str(number), peer="x"):
                logger.info("%d %s", count, "y" * 100)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [json.loads(line) for line in lines()]
    assert len(found) == 160
    for number in range(8):
        own = [line["message"].split()[0] for line in found if line["connection"] == str(number)]
        assert own == [str(count) for count in range(20)]


def test_what_a_peer_says_stays_on_a_line_and_short(capfd):
    logger = logger_to(2, logs.Text)
    logger.warning("a\nb\x1b[31m %s", "c" * 5000)
    (line,) = capfd.readouterr().err.splitlines()
    assert " warning a b [31m ccc" in line and len(line) < 2100 and line.isprintable()


def test_a_full_disk_loses_lines_and_says_how_many(monkeypatch, capfd):
    logger, write = logger_to(2, logs.Text), os.write
    logger.info("before")

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    logger.info("one")
    logger.info("two")
    monkeypatch.setattr(os, "write", write)
    logger.info("after")
    said = [line.split(" ", 2)[2] for line in capfd.readouterr().err.splitlines()]
    assert said == ["before", "2 lines were lost", "after"]


def test_unknown_forms_and_levels():
    for form, level in (("xml", "info"), ("json", "loud")):
        with pytest.raises(UserError, match="give --log-format text or json, and --log-level debug, info"):
            logs.configure(form, level)


def test_a_name_of_a_client_is_a_field(piped):
    logger, lines = piped
    with logs.about(connection="1", peer="p") as fields:
        fields["client"] = 'CN="a\\b"'
        logger.info("%s", np.int64(3))
    (line,) = map(json.loads, lines())
    assert line["client"] == 'CN="a\\b"' and line["message"] == "3"
