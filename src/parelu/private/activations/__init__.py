"""The protocols of an activation, one file each: `sign`, `full` and `fss` for ReLUs, and squares."""
