"""Engines: what executes a program between two parties."""
