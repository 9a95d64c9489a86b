"""Fuzzing: every decoder of bytes that others wrote, fed with what they should not be."""
