"""Readers: one file per family of data sets. `parelu.data` is the door; nothing here imports it."""
