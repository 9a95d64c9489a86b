"""What is told of memory, against the arrays that the parties have. Of material: `tests/contracts/test_traffic.py`."""

from hand_programs import Hand
from two_parties import NARROW

from parelu.private.cost import memory
from parelu.private.cost.memory import material
from parelu.private.crypto.ring import LinearMap
from parelu.private.offline.hint_sets import Made, Use, loaded
from parelu.private.offline.mode import Keep, modes
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Exact


def network():
    """A fork whose branches are read late; 18 elements, then 72 each, then 5."""
    made = Hand((2, 3, 3), ring=NARROW)
    first = made.conv(0, 8)
    left = made.activation(made.truncate(made.multiply(first)), relus=0.5, squares=0.4)
    made.linear(made.add(made.shift(first), left), 5)
    return made.lowered()


LOWERED = network()
MODEL = Model(LOWERED, relus()["sign"], Exact())


def nbytes(arrays) -> int:
    return sum(array.nbytes for array in arrays)


def test_the_servers_numbers_are_its_arrays():
    own = nbytes(array for named in LOWERED.weights.values() for array in named.values())
    maps = [map_ for map_ in MODEL.maps.values() if isinstance(map_, LinearMap)]
    assert memory._weights(LOWERED.program) == own + nbytes(a for map_ in maps for a in (map_.by_input, map_.rows))


def test_values_are_dropped_when_nothing_reads_them_any_more():
    """The first layer's output, the multiplied one, which a ReLU may read past its truncation, that, and the ReLUs'."""
    assert memory._live(LOWERED.program) == 4 * 72


def test_what_hints_take_is_what_both_parties_keep():
    plan = modes()["hints"].traffic(LOWERED.program, 1000).use.plan
    use = Use("", "", plan)
    made = Made(use, LOWERED, Keep())
    client = [array for hints in loaded(use, made.body()).values() for array in hints]
    client += [array for at in range(len(plan.uploads)) for array in use.public_polynomials(at)]
    server = [array for factors in made.factors().values() for array in (factors.matrix, *factors.u)]
    held = modes()["hints"].traffic(LOWERED.program, 1000).held()
    assert held == (nbytes(client), nbytes(server))


def test_more_images_take_their_material_more():
    one, three = (memory.memory(MODEL.terms, modes()["hints"], batch) for batch in (1, 3))
    assert three["client"] - one["client"] == 2 * material(MODEL.terms)["client"]
    assert three["server"] - one["server"] > 2 * material(MODEL.terms)["server"]
