"""A plugin whose hook returns no list."""

from quantlora.hookspecs import hookimpl


@hookimpl
def quantlora_initializers():
    return 7
