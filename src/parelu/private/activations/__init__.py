"""The protocols of an activation, one file each: `sign` and `full` for ReLUs, and squares."""
