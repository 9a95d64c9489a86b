"""Steps: their laws and their errors. The counts of the papers' steps stand in test_count.py."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.models.writing import graph_of
from parelu.network.count import skeleton
from parelu.network.instrument import instrument
from parelu.network.spec import spec_of
from parelu.network.steps import _alternate, apply_steps

SPEC = spec_of("resnet18 m=2", (1, 16, 16), 10)
STAGES = ("S1", "S2", "S3", "S4")
a_few = st.lists(st.sampled_from(STAGES), min_size=1, max_size=4, unique=True)
relu_step = st.one_of(
    st.builds(lambda verb, s: f"{verb} {'+'.join(s)}", st.sampled_from(("cull", "thin", "only")), a_few),
    st.sampled_from(("none", "one block", "stem linear", "thin all", "thin S2 one block", "only stem")),
)


def kept(text: str) -> set[str]:
    return {name for name, site in apply_steps(SPEC, text).plan.sites.items() if site.relus}


@settings(max_examples=25)
@given(first=relu_step, second=relu_step)
def test_steps_only_ever_drop(first, second):
    both = kept(f"{first}; {second}")
    assert both <= kept(first)
    assert kept(f"{first};{first}") == kept(first), "a step twice is the step once"


@pytest.mark.parametrize(
    ("text", "sites"),
    [
        ("only S3", ["layer3.0.relu1", "layer3.0.relu2", "layer3.1.relu1", "layer3.1.relu2"]),
        ("only stem", ["relu"]),
        ("cull S1+S2+S4; thin S3", ["layer3.0.relu2", "layer3.1.relu2"]),
        ("only S2; one block", ["layer2.0.relu1", "layer2.0.relu2"]),
        ("cull S1+S2; thin S3+S4 one block", ["layer3.0.relu2", "layer4.0.relu2"]),
        ("  only   S2 ;; thin S2 ", ["layer2.0.relu2", "layer2.1.relu2"]),
    ],
)
def test_which_sites_stay(text, sites):
    assert sorted(kept(text)) == sites


def test_scaling_changes_the_architecture():
    spec = apply_steps(SPEC, "channels 0.5; fmap 0.5").spec
    assert (spec.input, spec.to_json()["stem"]) == ((1, 8, 8), 1)


def test_reuse_keeps_the_last_channels_behind_additions_of_stages_that_keep_relus():
    wide = spec_of("resnet18 m=8", (1, 16, 16), 10)
    reduced = apply_steps(wide, "cull S1; thin S2+S3+S4; reuse 8 (as in Table 6)")
    assert reduced.spec == wide.with_reuse(8, {"S2", "S3", "S4"})
    thin = apply_steps(wide, "cull S1; thin S2+S3+S4").plan
    for name, site in reduced.plan.sites.items():
        channels = site.mask.shape[0]
        assert site.relus * 8 == thin.sites[name].relus
        assert not site.mask[: channels - channels // 8].any()
    full = apply_steps(wide, "reuse 4 in alternate layers").plan
    assert full.sites["layer1.0.relu1"].mask.all() and full.sites["relu"].mask.all()
    assert full.sites["layer1.0.relu2"].mask[-2:].all() and not full.sites["layer1.0.relu2"].mask[:-2].any()


def test_thinning_a_plain_network_drops_every_other_site():
    layers = [layer for _ in range(5) for layer in (nn.Conv2d(1, 1, 1), nn.ReLU())]
    sites = instrument(nn.Sequential(*layers), (1, 4, 4)).sites
    assert _alternate(sites.values()) == ["1", "5", "9"]


def test_thinning_a_pre_activation_network_leaves_alternate_layers():
    sites = apply_steps(spec_of("wrn-16-1 m=4", (3, 16, 16), 10), "thin all").plan.sites
    staying = [name for name, site in sites.items() if site.relus]
    assert staying == [name for name in sites if name.endswith("relu1") or name == "layer3.3"]
    first = apply_steps(spec_of("wrn-16-1 m=4", (3, 16, 16), 10), "only S2; one block").plan.sites
    assert [name for name, site in first.items() if site.relus] == ["layer2.0.relu1", "layer2.0.relu2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune S1", "unknown step 'prune S1'; known are none, cull S1"),
        ("cull S5", "unknown stage 'S5'; the network has S1, S2, S3, S4, or all"),
        ("cull stem", "unknown stage 'stem'"),
        ("cull S1 one block", "unknown step"),
        ("reuse", "unknown step"),
        ("reuse 4; reuse 8", "ReLU-reuse cannot be applied more than once"),
        ("reuse 3", "4 and 3 divide, not 2"),
        ("channels 0.3", "2 channels times 0.3 is 0.6"),
        ("channels 0", "2 channels times 0 is 0"),
        ("fmap 0.01", "input side of 16"),
    ],
)
def test_bad_steps(text, message):
    with pytest.raises(UserError) as caught:
        apply_steps(SPEC, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class Capped(nn.Module):
    """A residual block of ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
        self.inner, self.last = nn.ReLU6(), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.second(self.inner(self.first(x))))


def test_the_two_sites_of_a_relu6_go_together():
    layers = [layer for _ in range(3) for layer in (nn.Conv2d(1, 1, 1), nn.ReLU6())]
    sites = instrument(nn.Sequential(*layers), (1, 4, 4)).sites
    assert _alternate(sites.values()) == ["1", "1_cap", "5", "5_cap"]
    network = instrument(nn.Sequential(Capped(), Capped(), nn.Flatten()), (1, 4, 4))
    assert _alternate(network.sites.values()) == ["0.inner", "0.inner_cap", "1.inner", "1.inner_cap"]
    assert [site.block for site in network.sites.values()] == [0, 0, 0, 0, 1, 1, 1, 1]
    spec = graph_of(network, 16)
    staying = [name for name, site in apply_steps(spec, "without final ReLU").plan.sites.items() if site.relus]
    assert staying == list(network.sites)[:-2]
    assert _alternate(skeleton(spec).sites.values()) == _alternate(network.sites.values())
