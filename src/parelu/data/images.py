"""Single images from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from parelu.errors import UserError


def read_image(path: Path, channels: int) -> Tensor:
    """An image file as uint8 (1, C, H, W), grey for one channel, else RGB.

    Raises:
        UserError: there is no such file, or it is not an image.
    """
    try:
        with Image.open(path) as image:
            array = np.array(image.convert("L" if channels == 1 else "RGB"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such image") from None
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not an image that can be read ({' '.join(str(error).split())})") from error
    return torch.from_numpy(array).reshape(1, *array.shape[:2], channels).permute(0, 3, 1, 2).contiguous()
