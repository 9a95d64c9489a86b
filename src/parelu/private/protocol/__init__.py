"""The protocol: correlations, ReLU protocols, what is revealed, and the two phases."""
