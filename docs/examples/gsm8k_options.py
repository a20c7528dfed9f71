"""The options of ``train_gsm8k.py``: those of the LoftQ recipe, and quantlora's own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
             "constant_with_warmup")  # fmt: skip


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Of these arguments, or of the command line's."""
    return make_parser().parse_args(arguments)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Fine-tune a language model with LoRA on GSM8K, and measure exact match.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for add in (_model, _data, _training, _generation, _output):
        add(parser)
    return parser


def _model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model_name_or_path", required=True, help="Folder or hub id.")
    group.add_argument(
        "--adapter_name_or_path",
        help="Adapter to begin with. By default the model's own `loftq_init` folder where it has "
        "one, else a new adapter.",
    )
    group.add_argument("--tokenizer_name", help="Folder or hub id, if not the model's.")
    group.add_argument("--backend", default="auto", help="Format; float models are packed to it.")
    group.add_argument("--rank", type=int, default=64, help="Of a new adapter.")
    group.add_argument("--lora_alpha", type=float, default=16, help="Of a new adapter.")
    group.add_argument(
        "--init_lora_weights", default="default", help="Start of a new adapter: `loftq`, say."
    )
    group.add_argument("--bits", type=int, default=4, help="For `--init_lora_weights loftq`.")


def _data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data_name", "--dataset_name", default="gsm8k", help="Data set on the hub."
    )
    group.add_argument("--dataset_config_name", default="main")
    group.add_argument("--train_file", help="JSONL in GSM8K's form, in place of the hub's.")
    group.add_argument("--validation_file", help="The same, to measure on.")
    group.add_argument(
        "--validation_split_percentage", type=int, default=5,
        help="Of --train_file, its end, where there is no --validation_file.",
    )  # fmt: skip
    group.add_argument("--max_eval_samples", type=int, help="Measure on at most so many.")
    group.add_argument("--max_source_length", type=int, default=128, help="Tokens of a question.")
    group.add_argument("--max_target_length", type=int, default=256, help="Tokens of an answer.")
    group.add_argument(
        "--pad_to_max_length", action="store_true", help="Fill every batch up to both together."
    )
    group.add_argument(
        "--ignore_pad_token_for_loss", type=_flag, default=True, metavar="BOOL",
        help="Whether filling is left out of the loss.",
    )  # fmt: skip


def _training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--per_device_train_batch_size", type=int, default=8)
    group.add_argument("--per_device_eval_batch_size", type=int, default=8)
    group.add_argument("--gradient_accumulation_steps", type=int, default=1)
    group.add_argument("--learning_rate", type=float, default=5e-5)
    group.add_argument("--weight_decay", type=float, default=0.0)
    group.add_argument("--num_train_epochs", type=int, default=3, help="0: measure only.")
    group.add_argument("--max_train_steps", type=int, help="In place of epochs.")
    group.add_argument("--lr_scheduler_type", default="linear", choices=SCHEDULES)
    group.add_argument("--num_warmup_steps", type=int, default=0)
    group.add_argument("--seed", type=int, default=0)


def _generation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answers that are measured")
    group.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest tokens.")
    group.add_argument("--k", type=int, default=40, help="Of so many tokens one is drawn.")
    group.add_argument("--p", type=float, default=0.95, help="Of the likeliest with this mass.")


def _output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", required=True, help="For the adapter and results.json.")
    group.add_argument(
        "--checkpointing_steps", help="Save the adapter every so many steps, or every `epoch`."
    )
    group.add_argument("--with_tracking", action="store_true", help="Log to --report_to.")
    group.add_argument("--report_to", default="tensorboard", help="One of accelerate's trackers.")


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}")
    return text.lower() in ("true", "1")
