"""Options of methods whose values mean nothing are refused before anything is trained."""

import dataclasses
import math

import pytest

from parelu.errors import UserError
from parelu.methods.base import methods
from parelu.methods.options import RANGES, check_options
from parelu.methods.random import Random
from parelu.methods.snl import SNL
from parelu.registry import is_own
from parelu.runs.experiment import Experiment, Reduction
from parelu.training import papers
from parelu.training.schedule import SHORT

NUMBERS = [
    (name, field.name)
    for name, method in methods().items()
    if is_own(method)
    for field in dataclasses.fields(method)
    if "int" in str(field.type) or "float" in str(field.type)
    if field.name not in ("search", "finetune")
]


@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_numbers_that_mean_nothing_are_refused(name: str, option: str):
    assert option in RANGES, "the range of a new option stands with the others"
    for value in (-1, -0.5, math.nan, math.inf):
        with pytest.raises(UserError, match=option):
            Reduction(methods()[name](**{option: value}))


@pytest.mark.parametrize("name", methods())
def test_words_that_are_no_choice_are_refused(name: str):
    for field in dataclasses.fields(methods()[name]):
        if "Literal" in str(field.type):
            with pytest.raises(UserError, match=f"{name}: {field.name} is 'other'; it should be one of "):
                check_options(dataclasses.replace(methods()[name](), **{field.name: "other"}))


def test_what_the_papers_have_is_allowed():
    for name, paper in papers.PAPERS.items():
        for method, options in paper.options.items():
            check_options(methods()[method](**{k: v for k, v in options.items() if not k.endswith("training")}))
            assert name


def test_weights_of_the_losses():
    check_options(SNL(kd_weight=2.0, ce_weight=1.0))
    for method in (SNL(kd_weight=2.0), Random(kd_weight=2.0)):
        with pytest.raises(UserError, match=r"kd_weight is 2\.0; it should be at most 1"):
            check_options(method)
    with pytest.raises(UserError, match="both 0; there is no loss"):
        check_options(SNL(kd_weight=0.0, ce_weight=0.0))


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_seeds_are_what_all_generators_take(seed: int):
    with pytest.raises(UserError, match=f"seed is {seed}; it should be a whole number"):
        Experiment("resnet10 m=2", "digits", (), SHORT, seed)
