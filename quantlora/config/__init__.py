"""The settings of an adapter."""
