"""Traced networks rewritten with the ops of `network/ops.py` alone, rule by rule."""
