"""digits: 1,797 grey 8×8 images of ten digits, bundled with scikit-learn."""

from pathlib import Path

import torch

from parelu.data.readers.base import Raw, Shape, Split, spread


def read(location: Path | None = None, shape: Shape | None = None) -> Raw:
    """scikit-learn's digits: 1,437 + 360 images, 8×8 in grey.

    uint8 (N, 1, 8, 8): the bundled 0..16 scaled to 0..255. The set is published in one piece; which images are the
    test is fixed here, in the classes' proportions.
    """
    from sklearn.datasets import load_digits  # takes a second to import

    values, target = load_digits(return_X_y=True)
    grey = torch.from_numpy(values).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    whole = Split(grey, torch.from_numpy(target).long())
    in_test = torch.zeros(len(whole), dtype=torch.bool)
    in_test[spread(whole.labels, 360, seed=0, proportional=True)] = True
    return Raw(whole.select((~in_test).nonzero()[:, 0]), whole.select(in_test.nonzero()[:, 0]), classes=10)
