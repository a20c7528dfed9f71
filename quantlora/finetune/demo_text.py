"""The text that is used when none is named: the Python language reference, which CPython ships."""

from __future__ import annotations

from quantlora.errors import FinetuneError

NAME = "the Python language reference (pydoc_data.topics)"


def demo_text() -> str:
    """The reference without its repetitions, topics by name.

    Some topics are parts of others: each paragraph is kept where it comes first, so that what is
    held out has not been trained on.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FinetuneError(
            "this Python comes without pydoc_data.topics, its language reference: "
            "name a text of your own with --data."
        ) from error
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    return "\n\n".join(dict.fromkeys(filter(str.strip, paragraphs)))
