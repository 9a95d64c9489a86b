"""Offline modes: one file a mode, the folder is the registry."""
