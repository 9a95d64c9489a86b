"""Architectures: one file a family."""

from parelu.models.base import AUXILIARY, Spec, families, spec_from_json, spec_of

__all__ = ["AUXILIARY", "Spec", "families", "spec_from_json", "spec_of"]
