"""A plugin whose error has no text: asking for it raises."""


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


raise SilentError
