"""A fast tokenizer of Transformers as llama.cpp's metadata.

llama.cpp knows how a text is cut up before merging by a name; it is found by the very pattern that
the tokenizer has, and one with another pattern is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from quantlora import BackendError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: llama.cpp's names (``llama-vocab.cpp``) by the pattern that they stand for there.
_CUTS = {_LLAMA3: "llama-bpe", _LLAMA3.replace("{1,3}", ""): "qwen2"}
#: A token's own kinds in files (``llama_token_type``).
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
#: The score of a token that no merge gives.
_NEVER = -1e4
_SPACE = "\u2581"
_REMEDY = (
    "Name a GGUF file of the same model with --base, whose tokenizer is taken, or try llama.cpp's "
    "convert_hf_to_gguf.py on the merged folder"
)


def add_tokenizer(writer: Any, tokenizer: Any, size: int) -> None:
    """Write the tokenizer into the metadata.

    Args:
        size: rows of the embedding; ids beyond the vocabulary are unused.

    Raises:
        BackendError: it is no BPE tokenizer, or cuts texts up in a way that has no name there.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    facts: dict[str, Any] = {"model": {"type": None}}
    if backend is not None:
        facts = json.loads(backend.to_str())
    if facts["model"].get("type") != "BPE":
        raise BackendError(
            f"its tokenizer ({type(tokenizer).__name__}, {facts['model'].get('type')}) is no BPE "
            f"tokenizer, which is what is known here. {_REMEDY}."
        )
    if len(facts["model"]["vocab"]) <= len(facts["added_tokens"]):
        raise BackendError(
            f"{tokenizer.name_or_path}: there is no tokenizer in the folder, and the file would "
            f"have none. {_REMEDY}."
        )
    tokens, kinds = _tokens(tokenizer, facts, size)
    merges = [_pair(merge) for merge in facts["model"]["merges"]]
    if facts["model"].get("byte_fallback"):
        _add_sentencepiece(writer, facts, tokens, merges)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_cut(facts.get("pre_tokenizer")))
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    _add_special(writer, tokenizer)


def _pair(merge: Any) -> tuple[str, str]:
    """Two tokens, of a list or, as older files have it, with a space between."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _tokens(tokenizer: Any, facts: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [_UNUSED] * size
    fallback = facts["model"].get("byte_fallback")
    for token, i in facts["model"]["vocab"].items():
        is_byte = fallback and len(token) == 6 and token.startswith("<0x")
        tokens[i], kinds[i] = token, _BYTE if is_byte else _NORMAL
    for added in facts["added_tokens"]:
        i, kind = added["id"], _CONTROL if added["special"] else _USER_DEFINED
        tokens[i] = added["content"].replace(_SPACE, " ")
        kinds[i] = _UNKNOWN if fallback and i == tokenizer.unk_token_id else kind
    return tokens, kinds


def _add_sentencepiece(
    writer: Any, facts: dict[str, Any], tokens: list[str], merges: list[tuple[str, str]]
) -> None:
    """SentencePiece merges what gives the token of the highest score: the earliest of the list."""
    first: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        first.setdefault(left + right, rank)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([float(-first[t]) if t in first else _NEVER * 100 for t in tokens])
    writer.add_add_space_prefix(_prefixes_space(facts))


def _prefixes_space(facts: dict[str, Any]) -> bool:
    for step in (*_steps(facts.get("normalizer")), *_steps(facts.get("pre_tokenizer"))):
        if step["type"] == "Prepend":
            return True
        if step["type"] == "Metaspace":
            return bool(step.get("prepend_scheme", "always") != "never")
    return False


def _cut(pre_tokenizer: dict[str, Any] | None) -> str:
    """llama.cpp's name for how texts are cut up."""
    steps = list(_steps(pre_tokenizer))
    patterns = [s["pattern"].get("Regex") for s in steps if s["type"] == "Split"]
    levels = [s for s in steps if s["type"] == "ByteLevel"]
    if levels and not patterns and len(steps) == 1 and levels[0].get("use_regex", True):
        return "gpt-2"
    if len(patterns) == 1 and len(levels) == 1 and len(steps) == 2 and patterns[0] in _CUTS:
        return _CUTS[patterns[0]]
    named = ", ".join(step["type"] for step in steps) or "nothing"
    raise BackendError(
        f"its tokenizer cuts texts up ({named}) in a way that is not known by llama.cpp's names. "
        f"{_REMEDY}."
    )


def _steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if step is None:
        return
    if step["type"] == "Sequence":
        for inner in step.get("pretokenizers", step.get("normalizers", [])):
            yield from _steps(inner)
    else:
        yield step


def _add_special(writer: Any, tokenizer: Any) -> None:
    for name in ("bos", "eos", "unk", "pad"):
        token = getattr(tokenizer, f"{name}_token_id")
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
    template = tokenizer.chat_template
    if isinstance(template, str):
        writer.add_chat_template(template)
