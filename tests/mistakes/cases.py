"""Mistakes that users make, and the folder that they make them in."""

from __future__ import annotations

import json
from pathlib import Path

from quantlora import save_adapter, wrap
from quantlora.testing.models import save_tiny_llama

#: What is wrong, and the line that is typed.
COMMANDS = {
    "A path with a slip": "finetune --model ./my-modle --data notes.txt",
    "The model's file instead of its folder": (
        "finetune --model my-model/config.json --data notes.txt"
    ),
    "Data that are not there": "finetune --model my-model --data chat.jsonl",
    "An empty file": "finetune --model my-model --data empty.txt",
    "A column of another name": "finetune --model my-model --data faq.csv",
    "A column that the map has wrong": (
        "finetune --model my-model --data faq.csv --map prompt=frage,completion=answer"
    ),
    "A line that is no JSON": "data broken.jsonl --model my-model",
    "Conversations, and a model without a chat template": "data chats.jsonl --model my-model",
    "An option that another program has": (
        "finetune --model my-model --data notes.txt --fsdp full_shard"
    ),
    "An option with a slip": "finetune --model my-model --data notes.txt --lenght 64",
    "A width that there is not": (
        "finetune --model my-model --data notes.txt --backend float --bits 5"
    ),
    "Layers that match nothing": (
        "finetune --model my-model --data notes.txt --length 32 --target-modules q_prj"
    ),
    "A length beyond the model": "finetune --model my-model --data notes.txt --length 4096",
    "A learning rate with a slip": "finetune --model my-model --data notes.txt --lr 2",
    "An output folder that is in use": (
        "finetune --model my-model --data notes.txt --output my-model"
    ),
    "Nothing to go on with": "finetune --resume --output my-adapter",
    "A folder that holds no adapter": "chat notes",
    "A base that has moved": "chat orphan",
    "An adapter of another base": "chat my-adapter --model larger-model",
    "A merge of a whole model": "merge my-model --output merged",
    "A merge over something": "merge my-adapter --output my-model",
    "An adapter as GGUF that is a model": "export gguf my-model",
    "A server that there is not": "check-serving my-adapter --engine vlm",
    "A command that there is not": "train --model my-model",
}

#: The same in Python: ``model`` is loaded from ``my-model``.
SNIPPETS = {
    "A path instead of a model": 'quantlora.wrap("my-model", r=8)',
    "A field by another program's name": "quantlora.wrap(model, rank=8)",
    "Names that match no layer": 'quantlora.wrap(model, r=8, target_modules=["q_prj"])',
    "A rank of zero": "quantlora.wrap(model, r=0)",
    "A backend with a slip": 'quantlora.wrap(model, r=8, backend="normalfloatt")',
    "An adapter's folder that is not there": 'quantlora.load_adapter(model, "my-adaptor")',
    "Saving a model without an adapter": 'quantlora.save_adapter(model, "saved")',
}


def prepare(folder: Path) -> None:
    """Write everything that the lines name into ``folder``, the working directory."""
    from transformers import AutoModelForCausalLM

    save_tiny_llama(folder / "my-model")
    save_tiny_llama(folder / "larger-model", hidden_size=128)
    for name in ("my-adapter", "orphan"):
        model = AutoModelForCausalLM.from_pretrained("my-model")
        save_adapter(wrap(model, r=8), folder / name)
    _lose_base(folder / "orphan" / "adapter_config.json")
    (folder / "notes").mkdir()
    (folder / "notes.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    (folder / "empty.txt").touch()
    (folder / "faq.csv").write_text("question asked,reply\nWhat is it?,A fox.\n" * 20)
    (folder / "broken.jsonl").write_text('{"text": "good"}\n{"text": "no end}\n')
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    (folder / "chats.jsonl").write_text(json.dumps({"messages": turns}) + "\n")


def _lose_base(file: Path) -> None:
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": "./old-model"}))
