"""One adapter from several: weighted combinations."""
