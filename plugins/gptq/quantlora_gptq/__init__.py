"""GPTQ for quantlora: the format ``gptq``, through GPTQModel or AutoGPTQ."""
