"""Module-LWE for products with published hints: one parameter set, transforms, samplers and residues."""
