"""What the recipes of a paper have in common because its text says so."""

from parelu.methods.learned import LearnedMasks
from parelu.methods.steps import Steps
from parelu.runs.recipes import read_recipe, recipes


def test_deepreshape_distils_from_resnet18_but_for_snl():
    """Appendix J: "we consistently employed ResNet18 as the teacher", and SNL's "default implementation"."""
    for name in (name for name in recipes() if name.startswith("deepreshape/")):
        for one in read_recipe(name).experiments:
            for r in one.reductions:
                taught = one.teacher if not r.own_teacher else None
                is_free = isinstance(r.method, Steps) and r.method.distillation == "none"
                assert is_free or taught == (None if r.method.name == "snl" else "resnet18"), (name, r.method.name)


def test_snl_and_autorep_of_one_recipe_start_from_one_baseline():
    """AutoReP, section 4.1: no ReLU behind the first convolution, as in the work that it is compared with."""
    for name in (name for name in recipes() if name.startswith("autorep/")):
        for one in read_recipe(name).experiments:
            of_masks = [r.method.steps for r in one.reductions if isinstance(r.method, LearnedMasks)]
            assert len(set(of_masks)) <= 1, name
