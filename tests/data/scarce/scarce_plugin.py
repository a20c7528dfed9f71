"""A format and an initializer whose every step may run out of memory."""

from quantlora.hookspecs import hookimpl


@hookimpl
def quantlora_quantizers():
    from scarce_layers import ScarceQuantizer

    return [ScarceQuantizer()]


@hookimpl
def quantlora_initializers():
    from scarce_layers import ScarceStart

    return [ScarceStart()]
