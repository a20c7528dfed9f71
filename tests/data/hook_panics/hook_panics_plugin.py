"""A plugin whose hook raises what is no Exception."""

import quantlora


class PanicException(BaseException):
    pass


@quantlora.hookimpl
def quantlora_quantizers():
    raise PanicException("index out of bounds")
