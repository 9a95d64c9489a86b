"""Every printed count of every network that can be written: what ours has, or a reason that stands with the row."""

import re
from collections.abc import Sequence

import pytest

from parelu.errors import UserError
from parelu.models.resnet import BasicBlocks
from parelu.network.spec import spec_of
from parelu.published import Published, find, rows
from parelu.published.counts import INPUTS, figures, reduced

COUNTED = ("relus", "flops_m", "depth", "conv")
# FLOPs of DeepReShape are some per mille off what its networks have, and off each other: those of widths 8, 16 and 32
# (Table 6) are 1 : 4 : 16, which batch-norms and the classifier are not. The wiring of ReLU-reuse is inferred from its.
FLOPS, FLOPS_OF_REUSE = 0.01, 0.0011


def is_counted(row: Published) -> bool:
    stated = any("share" in name or "widths" in name or "by_stage" in name for name in row.stated)
    return bool(row.network) and (stated or any(getattr(row, name) is not None for name in COUNTED))


QUICK = ("resnet18", "resnet10", "resnet9", "resnet56", "wrn-22-8", "regnetx-200mf", "regnetx-1.6gf", "hrn-2x5x3x m=16")


def groups() -> list[object]:
    """The rows by network and data set; all but some networks at the size of CIFAR are slow."""
    found: dict[tuple[str, str], list[Published]] = {}
    for row in filter(is_counted, rows()):
        if "network" not in row.exception:
            found.setdefault((row.network, row.dataset or "cifar100"), []).append(row)
    return [
        pytest.param(
            group,
            id=f"{network}, {dataset}",
            marks=[] if network in QUICK and dataset.startswith("cifar") else [pytest.mark.slow],
        )
        for (network, dataset), group in found.items()
    ]


def is_as_printed(printed: str, ours: float) -> bool:
    """Whether a number agrees with one in print, rounded or cut off at its last digit."""
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?([kKM]?)", printed.replace(",", ""))
    assert match, printed
    unit = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6}[match[3]]
    return abs(float(match[0].rstrip("kKM")) * unit - ours) < unit * 10.0 ** -len(match[2] or "")


@pytest.mark.parametrize("group", groups())
def test_figures_are_the_published(group: Sequence[Published]):
    for row in group:
        for name, ours in figures(row).items():
            if name == "flops_m":
                agrees = ours == pytest.approx(row.flops_m, rel=FLOPS_OF_REUSE if "reuse" in row.steps else FLOPS)
            else:
                printed = row.printed if name == "relus" and row.printed else row.stated.get(name)
                agrees = is_as_printed(printed or str(getattr(row, name)), ours)
            assert agrees == (name not in row.exception), f"{row.source}, {row.row}: {name} of ours is {ours}"


def test_what_a_row_says_of_each_stage():
    for row in (row for row in rows() if row.network):
        spec_name = (row.network, *INPUTS[row.dataset])
        if "stage_widths" in row.stated:
            spec = spec_of(*spec_name)
            assert isinstance(spec, BasicBlocks) and "/".join(map(str, spec.widths)) == row.stated["stage_widths"]
        if "normalised_relus_by_stage" in row.stated:
            stages = list(by_stage(row).values())
            printed = [int(number) for number in row.stated["normalised_relus_by_stage"].split("/")]
            assert [64 * relus / stages[0] for relus in stages] == printed
    for row in find("DeepReShape Table 4"):
        stem, first, *rest = by_stage(row, stem=True).values()
        for printed, relus in zip(row.stated["stage_shares_percent"].split("/"), [stem + first, *rest], strict=True):
            assert is_as_printed(printed, 100 * relus / (stem + first + sum(rest)))


def by_stage(row: Published, stem: bool = False) -> dict[str, int]:
    """ReLUs of each stage; the sites of a basic-block ResNet stand under layer1, layer2, …"""
    found: dict[str, int] = {}
    for name, site in reduced(row).plan.sites.items():
        stage = name.split(".")[0]
        if stem or stage != "relu":
            found[stage] = found.get(stage, 0) + site.relus
    return found


def test_each_row_that_cannot_be_counted_says_why():
    for row in filter(is_counted, rows()):
        if "network" in row.exception:
            with pytest.raises(UserError, match=re.escape(row.exception["network"])):
                reduced(row)
        assert set(row.exception) <= {"network", "steps", *COUNTED, *row.stated}, row


def test_flops_of_merged_networks_are_deepreduces():
    """87.7 = 125.49 − 16 convolutions of S1; 66.5 = that − 9 of S2, of 2.359 million multiply-adds each."""
    found = [row for row in find("DeepReDuce Table 8") if row.steps.startswith("cull")]
    assert [row.flops_m for row in found] == [87.7, 66.5] * 2
    for row in found:
        assert figures(row)["flops_m"] == pytest.approx(row.flops_m, abs=0.05)
    base, one = 125.4857, 16 * 16 * 9 * 32 * 32 / 1e6
    assert figures(found[0])["flops_m"] == pytest.approx(base - 16 * one, abs=2e-3)
    assert figures(found[1])["flops_m"] == pytest.approx(base - 25 * one, abs=2e-3)


def test_real_regnets_have_deepreshapes_relus():
    (small,) = [row for row in rows() if row.network == "regnetx-200mf"]
    (large,) = [row for row in rows() if row.network == "regnetx-1.6gf"]
    assert (figures(small)["relus"], figures(large)["relus"]) == (1_460_224, 6_544_384)
