"""torchao for quantlora: weights that are tensors of a class of torchao's."""
