"""Inputs for a Transformers model, made from its signature and its config.

A model that has been adapted is asked with them, and so is its export; nothing here knows an
architecture by name.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_SAMPLES, _TOKENS = 2, 8
#: What models beside their main input ask for, and cannot do without.
_COMPANIONS = ("decoder_input_ids", "bbox", "pixel_values", "input_features", "input_values")

Inputs = dict[str, Tensor]


def candidate_inputs(model: Any) -> Iterator[Inputs]:
    """Inputs to try, by name, the likeliest first; some may not suit the model.

    The main input with what a decoder needs, then with further inputs that the model's forward
    names, then the model's own ``dummy_inputs``.
    """
    names = inspect.signature(type(model).forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    if main not in names:
        main = next((name for name in ("input_ids", *_COMPANIONS) if name in names), main)
    others = [name for name in _COMPANIONS if name in names and name != main]
    decoder = [name for name in others if name == "decoder_input_ids"]
    text = [name for name in ("input_ids",) if name in names and name != main]
    choices = ([main, *decoder], [main], [main, *text], [main, *text, *others], [*text, *others])
    for chosen in choices:
        yield from _variants(chosen, model.config)
    yield from _dummy_inputs(model)


def _dummy_inputs(model: Any) -> Iterator[Inputs]:
    try:
        yield dict(model.dummy_inputs)
    except Exception:  # a property of the model's class, which may ask for what is not there
        return


def _variants(names: list[str], config: Any) -> Iterator[Inputs]:
    """One for each shape that the inputs called ``names`` can have."""
    shapes = {name: list(_MAKERS[name](config)) for name in names if name in _MAKERS}
    if not names or len(shapes) < len(names):
        return
    for index in range(max(map(len, shapes.values()))):
        yield {name: found[min(index, len(found) - 1)] for name, found in shapes.items()}


# -- what the config says


def _configs(config: Any) -> Iterator[Any]:
    """``config`` and those within it, from the outside in."""
    waiting = deque([config])
    while waiting:
        part_config = waiting.popleft()
        yield part_config
        waiting.extend(part for part in vars(part_config).values() if hasattr(part, "model_type"))


def _values(config: Any, *names: str) -> list[int]:
    """The whole numbers called so, the outermost first; of pairs the first number."""
    found = [_read(part, name) for part in _configs(config) for name in names]
    flat = [value[0] if isinstance(value, (list, tuple)) and value else value for value in found]
    return [value for value in flat if isinstance(value, int) and not isinstance(value, bool)]


def _read(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # some differ by layer and refuse to answer for all
        return None


def _first(config: Any, *names: str, default: int) -> int:
    return next(iter(_values(config, *names)), default)


def _special(config: Any) -> set[int]:
    """Tokens that stand for something else than text: padding, an image, the end."""
    named = (vars(part).items() for part in _configs(config))
    ends = ("token_id", "token_index")
    return {value for items in named for name, value in items if name.endswith(ends) and _is(value)}


def _is(value: Any) -> bool:
    return isinstance(value, int)


# -- the inputs


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _tokens(config: Any) -> Iterator[Tensor]:
    """Random text ``(samples, tokens)``; the last ends the sequence, which classifiers seek."""
    vocabulary = min(_values(config, "vocab_size"), default=100)
    text = [token for token in range(vocabulary) if token not in _special(config)] or [0]
    chosen = torch.randint(
        0, len(text), (_SAMPLES, _TOKENS), generator=torch.Generator().manual_seed(0)
    )
    tokens = torch.tensor(text)[chosen]
    end = _first(config, "eos_token_id", default=-1)
    if 0 <= end < vocabulary:
        tokens[:, -1] = end
    yield tokens


def _boxes(config: Any) -> Iterator[Tensor]:
    yield torch.tensor([1, 2, 3, 4]).expand(_SAMPLES, _TOKENS, 4).clone()


def _images(config: Any) -> Iterator[Tensor]:
    """``(samples, channels, height, width)``, then as a video."""
    channels = _first(config, "num_channels", "in_channels", "in_chans", default=3)
    size = _first(config, "image_size", default=224)
    yield _random(_SAMPLES, channels, size, size)
    frames = _first(config, "num_frames", "frames_per_clip", default=2)
    yield _random(_SAMPLES, frames, channels, size, size)


def _spectra(config: Any) -> Iterator[Tensor]:
    """Sound by frequency and time, in the orders that are in use."""
    bins = _first(config, "num_mel_bins", "feature_size", "n_mels", default=80)
    time = 2 * _first(config, "max_source_positions", default=64)
    yield _random(_SAMPLES, bins, time)
    width = _first(config, "feature_projection_input_dim", "input_feat_per_channel", default=bins)
    yield _random(_SAMPLES, time, width)
    yield _random(_SAMPLES, 1, time, bins)


def _sounds(config: Any) -> Iterator[Tensor]:
    """Half a second at 16 kHz, with and without channels; then a spectrum."""
    yield _random(_SAMPLES, 8000)
    yield _random(_SAMPLES, 1, 8000)
    yield _random(
        _SAMPLES,
        _first(config, "max_length", default=64),
        _first(config, "num_mel_bins", default=80),
    )


_MAKERS: dict[str, Callable[[Any], Iterator[Tensor]]] = {
    "input_ids": _tokens,
    "decoder_input_ids": _tokens,
    "bbox": _boxes,
    "pixel_values": _images,
    "pixel_values_videos": _images,
    "input_features": _spectra,
    "input_values": _sounds,
}
