"""Budgets in seconds or bytes, as they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parelu.errors import UserError
from parelu.methods.limits import UNITS, Limits, is_of_query, parse_limits

amounts = st.floats(1e-6, 1e6).map(lambda x: float(f"{x:.6g}"))


@given(st.dictionaries(st.sampled_from(list(UNITS)), amounts, min_size=1))
def test_what_limits_are_shown_as_is_read_again(most):
    limits = Limits(dict(sorted(most.items(), key=lambda one: list(UNITS).index(one[0]))))
    assert is_of_query(str(limits))
    again = parse_limits(str(limits))
    assert list(again.most) == list(limits.most)
    assert all(again.most[name] == pytest.approx(amount, rel=1e-5) for name, amount in most.items())
    assert str(again) == str(parse_limits(str(again)))
    assert not set(limits.slug) & set(":/ ")


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("200ms", {"online": 0.2}),
        ("0.2s", {"online": 0.2}),
        ("online:200ms", {"online": 0.2}),
        ("total:2min", {"total": 120.0}),
        ("20MB", {"bytes": 20e6}),
        ("bytes:20MB+200ms", {"online": 0.2, "bytes": 20e6}),
        ("offline:1e+0s+5ms", {"online": 0.005, "offline": 1.0}),
        ("3µs", {"online": 3e-6}),
    ],
)
def test_limits_are_read(text, most):
    assert is_of_query(text)
    assert parse_limits(text).most == pytest.approx(most)


@pytest.mark.parametrize("text", ["50k", "0.1", "1.2m", "5000", "1e4", "1e+4", "12.9K", "nan", "-3", ""])
def test_numbers_of_relus_are_none(text):
    assert not is_of_query(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("200parsec", "'parsec' is no unit of online; known are us, µs, ms, s, min"),
        ("total:20MB", "'MB' is no unit of total"),
        ("bytes:5s", "'s' is no unit of bytes; known are B, kB, MB, GB"),
        ("total:5", "'total:5' has no unit"),
        ("speed:5s", "'speed' is no limit; known are online, offline, total, bytes"),
        ("0ms", "0 is no number above zero"),
        ("-5ms", "-5 is no number above zero"),
        ("1e999s", "1e999 is no number above zero"),
        ("1.2.3s", "1.2.3 is no number above zero"),
        ("200ms+0.1s", "online twice"),
        ("200ms+", "'' is no limit of a query"),
        ("200 ms and 5s", None),
        ("total:", "is no limit of a query"),
    ],
)
def test_what_is_no_limit_is_refused_in_a_line(text, said):
    if said is None:
        assert not is_of_query(text)
        return
    assert is_of_query(text)
    with pytest.raises(UserError) as refused:
        parse_limits(text)
    assert said in str(refused.value) and len(str(refused.value).splitlines()) == 1
