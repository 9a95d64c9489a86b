"""Runs: the folder that one step leaves for the next, experiments and recipes, and what executes them."""
