"""digits: 1,797 grey 8×8 images of ten digits, bundled with scikit-learn."""

import importlib.util
from pathlib import Path

import numpy as np
import torch

from parelu.data.readers.base import Raw, Shape, Split, spread


def read(location: Path | None = None, shape: Shape | None = None) -> Raw:
    """scikit-learn's digits: 1,437 + 360 images, 8×8 in grey.

    uint8 (N, 1, 8, 8): the bundled 0..16 scaled to 0..255. The set is published in one piece; which images are the
    test is fixed here, in the classes' proportions.
    """
    table = torch.from_numpy(_table())
    grey = table[:, :-1].mul(255 / 16).round().to(torch.uint8).reshape(-1, 1, 8, 8)
    whole = Split(grey, table[:, -1].long())
    in_test = torch.zeros(len(whole), dtype=torch.bool)
    in_test[spread(whole.labels, 360, seed=0, proportional=True)] = True
    return Raw(whole.select((~in_test).nonzero()[:, 0]), whole.select(in_test.nonzero()[:, 0]), classes=10)


def _table() -> np.ndarray:
    """(1797, 65): 64 pixels from 0 to 16 and the digit; of scikit-learn's file, since to import it takes a second."""
    package = importlib.util.find_spec("sklearn")
    file = Path(str(package and package.origin)).parent / "datasets/data/digits.csv.gz"
    if file.exists():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # where a version keeps it elsewhere

    values, digits = load_digits(return_X_y=True)
    return np.concatenate([values, np.asarray(digits)[:, None]], axis=1)
