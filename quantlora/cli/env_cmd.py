"""``quantlora env``: the same as ``python -m quantlora.env``."""

from quantlora.env.command import env

__all__ = ["env"]
