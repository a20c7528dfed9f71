"""quanto for quantlora: the layers of optimum-quanto, their weights alone quantized."""
