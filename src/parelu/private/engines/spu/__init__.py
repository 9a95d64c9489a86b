"""SPU's engines, and what runs in their own environment."""

from parelu.private.engines.spu.engine import Aby3, Cheetah, Semi2k

__all__ = ["Aby3", "Cheetah", "Semi2k"]
