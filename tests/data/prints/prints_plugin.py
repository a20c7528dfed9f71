"""A plugin that prints whenever it can, in Python, in C and from another process."""

import ctypes
import subprocess
import sys

import quantlora


def say(word: str) -> None:
    print(word, "in Python")
    ctypes.CDLL(None).puts(f"{word} in C".encode())
    subprocess.run([sys.executable, "-c", f"print({word!r}, 'elsewhere')"], check=True)


say("import")


@quantlora.hookimpl
def quantlora_checks():
    say("hook")
    return []
