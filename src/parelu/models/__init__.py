"""Architectures: one file a family."""

from parelu.models.base import Spec, families, spec_from_json, spec_of

__all__ = ["Spec", "families", "spec_from_json", "spec_of"]
