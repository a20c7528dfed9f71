"""quantlora: LoRA adapters on any quantized PyTorch model, through one call.

    model = quantlora.wrap(model, backend="auto", r=16, target_modules="all-linear")

Public names are listed in ``__init__.pyi`` and loaded when first used, so that what needs only
package metadata (the environment report) does not wait for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
