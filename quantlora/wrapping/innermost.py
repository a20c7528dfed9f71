"""The model that was compiled, or replicated over devices, after it was made."""

from __future__ import annotations

from torch import nn

from quantlora.errors import AdapterError


def innermost(model: nn.Module, trained: bool = True) -> nn.Module:
    """``model`` without what ``torch.compile`` and data parallelism put around the whole of it.

    Args:
        trained: whether new parameters would be trained. DistributedDataParallel has noted which
            parameters it sums up over the processes, and would leave these out without a word.
    """
    while True:
        if trained and isinstance(model, nn.parallel.DistributedDataParallel):
            raise AdapterError(
                "DistributedDataParallel would not sum up the gradients of an adapter that comes "
                "after it: put the adapter on the model first, then DistributedDataParallel."
            )
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model
