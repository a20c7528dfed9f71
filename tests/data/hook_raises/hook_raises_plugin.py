"""A plugin whose hook raises."""

from quantlora.hookspecs import hookimpl


@hookimpl
def quantlora_quantizers():
    raise RuntimeError("the table of formats is empty")
