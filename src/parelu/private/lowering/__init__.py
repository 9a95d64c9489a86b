"""From a network to the integer program that two parties run, and its plaintext reference."""
