"""AWQ for quantlora: the format ``awq``, in the layers of GPTQModel and Transformers."""
