"""Learning which ReLUs stay: gates, what moves them, polynomials, projection onto a budget."""
