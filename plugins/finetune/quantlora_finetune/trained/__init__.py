"""What is done with an adapter after its training: chat, generate, eval, merge, compare."""
