"""Data sets, in memory or in files: splits, batched augmentation, and the registry of sets.

data = load("fashion-mnist", images=20_000)
for images, labels in batches(data.train, 256, seed=0, epoch=0, augmentation=data.augmentation):
    x = normalise(images, data.mean, data.std)
"""

from parelu.data.augmentation import Augmentation
from parelu.data.batches import batches
from parelu.data.dataset import Dataset, available, load, names
from parelu.data.files import Files
from parelu.data.memory import from_memory
from parelu.data.readers.base import Images, Split
from parelu.network.preprocessing import normalise, resize

__all__ = [
    "Augmentation",
    "Dataset",
    "Files",
    "Images",
    "Split",
    "available",
    "batches",
    "from_memory",
    "load",
    "names",
    "normalise",
    "resize",
]
