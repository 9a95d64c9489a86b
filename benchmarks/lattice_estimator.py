"""The same parameters by lattice-estimator (Albrecht, Player, Scott 2015), whose costs of reduction are newer ones.

    python3.12 -m venv estimator && estimator/bin/pip install passagemath-standard
    git clone https://github.com/malb/lattice-estimator
    estimator/bin/python benchmarks/lattice_estimator.py lattice-estimator

It needs Sage, and so an environment of its own, without ours: `SETS` repeats what
`benchmarks/lattice.py` prints. Some four minutes. Models of what a reduction costs: MATZOV (2022), its default; BDGL16
(Becker, Ducas, Gama, Laarhoven 2016), as in the standard's table; ADPS16, core-SVP.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from typing import Any

MODELS = ("MATZOV", "BDGL16", "ADPS16")
ATTACKS = ("primal_usvp", "primal_bdd", "dual_hybrid")
ROUNDED = math.sqrt(1 / 12)
SETS: dict[str, tuple[int, float, float | None]] = {  # dimension, log2 q, standard deviation of a Gaussian error
    "the standard's table at 128 bits": (4096, 109, None),
    "the standard's table at 128 bits ": (8192, 218, None),
    "offline mode seal, least": (8192, 192, None),
    "offline mode hints": (6144, 151.5, None),
    "hints as published": (6144, 78, ROUNDED),
    "dimension 6144, 153 bits": (6144, 153, None),
    "dimension 6144, 160 bits": (6144, 160, None),
    "dimension 6144, 162 bits": (6144, 162, None),
}


def bits(estimator: Any, dimension: int, log_q: float, error: float | None, model: str) -> list[float]:
    """log2 of each attack's operations; the error is centred binomial of 21 pairs where none is given."""
    nd = estimator.ND
    parameters = estimator.LWE.Parameters(
        n=dimension,
        q=round(2**log_q),
        Xs=nd.Uniform(-1, 1),
        Xe=nd.DiscreteGaussian(error) if error else nd.CenteredBinomial(21),
    )
    cost = getattr(estimator.RC, model)
    return [
        math.log2(float(getattr(estimator.LWE, attack)(parameters, red_cost_model=cost)["rop"])) for attack in ATTACKS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the estimator's folder")
    sys.path.insert(0, parser.parse_args().source)
    importlib.import_module("sage.all")
    estimator = importlib.import_module("estimator")
    print(f"{'':<36}{'N':>6}{'log2 q':>9}" + "".join(f"{model:>36}" for model in MODELS))
    print(f"{'':<51}" + "".join(f"{attack:>12}" for attack in ATTACKS) * len(MODELS))
    for name, (dimension, log_q, error) in SETS.items():
        found = [found for model in MODELS for found in bits(estimator, dimension, log_q, error, model)]
        print(f"{name:<36}{dimension:>6}{log_q:>9.1f}" + "".join(f"{one:>12.1f}" for one in found), flush=True)


if __name__ == "__main__":
    main()
