"""``quantlora export gguf``: adapters and merged models as GGUF files, for llama.cpp and Ollama."""
