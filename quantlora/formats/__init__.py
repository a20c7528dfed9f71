"""Weight formats: what a backend has to say, and the built-in float format."""
