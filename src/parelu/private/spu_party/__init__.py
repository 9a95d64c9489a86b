"""What runs in SPU's own environment: a party, and a program on fixed-point numbers. Needs nothing else of parelu."""
