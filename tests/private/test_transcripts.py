"""The transcripts of benchmarks/transcripts.py: what it spoils is spoilt, and what must not be is reported."""

import random
import signal

import pytest
from scripts import script

from parelu.private.transport import tls

transcripts = script("benchmarks/transcripts.py")


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_session_is_right_as_it_is_and_refused_where_bytes_are_missing(encrypted, tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "setitimer", lambda *arguments: None)
    if encrypted:
        tls.make_certificates(tmp_path)
    pair = transcripts.Pair(transcripts.Setting("dealer", "sign", encrypted, 1.0, 5.0), tmp_path)
    try:
        assert len(pair.clean[True]) > 5 and len(pair.clean[False]) > 5
        assert pair.session({(True, 999): "flip"}, random.Random(0))["end"] == "right", "a place that never came"
        ended = pair.session({(True, 3): "garbage"}, random.Random(1))
        assert ended["end"] == "refused" and ended["client"] and ended["server"] and ended["spoilt"] == ["garbage"]
        if not encrypted:  # of the input and the ReLUs' answer: nothing says what they should be
            flipped = [pair.session({(True, 4 + seed % 2): "flip"}, random.Random(seed)) for seed in range(20)]
            assert {each["end"] for each in flipped} <= {"right", "wrong", "refused"}
            assert any("is no result: a logit of" in each["client"] for each in flipped)
    finally:
        pair.close()


@pytest.mark.parametrize("kind", sorted(set(transcripts.KINDS)))
def test_each_kind_spoils_a_message(kind):
    spoiler = transcripts.Spoiler(True, {}, {True: [b"other session"], False: []}, random.Random(0))
    unit = transcripts.MESSAGE.pack(b"kind", 0, 4) + b"body"
    if kind != "swap":
        assert spoiler._spoil(unit, kind, True, 0) != unit
        assert spoiler.spoilt == [kind]


def line(end, setting="he/sign/tls", **others):
    said = {"client": "", "server": "", "spoilt": [], "seconds": 1.0}
    return {"setting": setting, "number": 0, "end": end, **said, **others}


def test_what_must_hold_is_told_from_what_need_not(capsys):
    grown = {"files": 0, "threads": 0, "children": 0, "memory": 9}
    fine = [line("right"), line("refused"), line("wrong", "he/sign/plain"), {"setting": "he/sign/tls", "grown": grown}]
    assert transcripts.summary(fine)
    for bad in (line("wrong"), line("hang"), line("broken", "he/sign/plain"), line("out of range", "he/sign/plain")):
        assert not transcripts.summary([*fine, bad])
    assert not transcripts.summary([*fine, {"setting": "he/sign/tls", "grown": {**grown, "files": 1}}])
    assert "he/sign/plain" in capsys.readouterr().out
