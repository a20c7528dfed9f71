"""What is typed on the way from data to a server, in order, with what is said about it."""

from __future__ import annotations

from typing import NamedTuple


class Step(NamedTuple):
    """One command: its title, the sentence before it, the line, and what is typed at prompts."""

    title: str
    text: str
    line: str
    answers: tuple[str, ...] = ()


STEPS = (
    Step(
        "Look at the data",
        "Which forms the rows have, how long the examples are, and, between « and », what is\n"
        "learned of each. `my-model` has no chat template, so one is named.",
        "data chats.jsonl --model my-model --template chatml",
    ),
    Step(
        "Train",
        "The base is packed in 4 bits, a LoRA of rank 8 goes on its 14 layers. The same eight\n"
        "questions are all there is, so what is held out was seen in training: with data of your\n"
        "own the perplexity does not fall to 1.",
        "finetune --model my-model --data chats.jsonl --template chatml --backend normalfloat "
        "--dtype float32 --steps 40 --batch-size 8 --lr 0.01 --output my-adapter",
    ),
    Step(
        "Talk with it",
        "It was trained on single questions, so each conversation has one.",
        "chat my-adapter",
        ("What is LoRA?", "/reset", "How do I chat?", "/quit"),
    ),
    Step("Measure it", "On the part that the run held out.", "eval my-adapter"),
    Step(
        "Merge it",
        "A plain Transformers model with the adapter in its weights.",
        "merge my-adapter --output merged",
    ),
    Step(
        "Export the adapter for llama.cpp",
        "It goes on any GGUF file of the same base. The template has to be named:\n"
        "the base's file has another one or none.",
        "export gguf my-adapter",
    ),
    Step(
        "Export the model for llama.cpp",
        "One file with the weights, the tokenizer and the chat template of the training.",
        "export gguf my-adapter --merged --output served",
    ),
    Step(
        "Ask which servers take the adapter",
        "Before one is started.",
        "check-serving my-adapter",
    ),
)
