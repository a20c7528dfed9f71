"""Plugins: found, kept apart, and chosen from."""
