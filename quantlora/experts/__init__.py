"""Fused experts of mixtures: where their matrices are, packed stacks, and their products."""
