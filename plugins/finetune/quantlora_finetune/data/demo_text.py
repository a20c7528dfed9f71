"""The text that is used when none is named: the Python language reference, which CPython ships."""

from __future__ import annotations

from quantlora.errors import FinetuneError

NAME = "the Python language reference (pydoc_data.topics)"


def demo_text() -> str:
    """The reference without its repetitions, long topics first.

    Long topics contain short ones: each paragraph is kept where it comes first. So nothing of the
    end, which is held out, has been trained on, and it is a mixture of many short topics.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FinetuneError(
            "this Python comes without pydoc_data.topics, its language reference: "
            "name a text of your own with --data."
        ) from error
    names = sorted(topics, key=lambda name: (-len(topics[name]), name))
    paragraphs = "\n\n".join(topics[name] for name in names).split("\n\n")
    return "\n\n".join(dict.fromkeys(filter(str.strip, paragraphs)))
