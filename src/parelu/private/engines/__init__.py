"""Engines: one file or folder an engine, the folder is the registry."""
