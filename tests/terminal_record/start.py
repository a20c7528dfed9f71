"""Write my-model, which has learned nothing yet, and chats.jsonl, eight questions and answers."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from quantlora.testing.models import tiny_llama

ANSWERS = {
    "What is your name?": "My name is Tiny.",
    "What is LoRA?": "A small update beside a frozen weight.",
    "What is a rank?": "The number of columns of the update.",
    "How do I train?": "Type quantlora finetune.",
    "How do I chat?": "Type quantlora chat.",
    "How do I merge?": "Type quantlora merge.",
    "How do I measure?": "Type quantlora eval.",
    "Where is the adapter?": "In the folder that --output names.",
}
rows = [
    {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]}
    for ask, say in ANSWERS.items()
]
Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 5))

bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=384,
    special_tokens=["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
bpe.train_from_iterator([*ANSWERS, *ANSWERS.values()], trainer)
bpe.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
)
tokenizer.save_pretrained("my-model")
tiny_llama(vocab_size=384, initializer_range=0.2).save_pretrained("my-model")
