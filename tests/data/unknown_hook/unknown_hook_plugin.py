"""A plugin that implements a hook which does not exist."""

from quantlora.hookspecs import hookimpl


@hookimpl
def quantlora_quantisers():
    return []
