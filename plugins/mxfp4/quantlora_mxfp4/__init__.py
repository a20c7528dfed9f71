"""MXFP4 for quantlora: the 4-bit floats of gpt-oss, in experts and in linear layers.

Public names are listed in ``__init__.pyi`` and loaded when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
