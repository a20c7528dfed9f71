"""First values of A and B: what an initializer is, and the random ones."""
