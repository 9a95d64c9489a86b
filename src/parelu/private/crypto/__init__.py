"""Primitives: randomness, hashing, the ring, garbling, oblivious transfer, comparison functions, lattices."""
