"""Small tokenizers of every kind that a model of the Llama family may have, trained on a page of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KINDS = ("gpt-2", "smollm", "llama-bpe", "qwen2", "spm", "spm-metaspace", "spm-bare")
PAGE = [
    "The quick brown fox jumps over the lazy dog. It's 1945, and they've gone home; we'll see 12,345 of them.",
    "Hello, world! Hello there, old friend. What is it that you want? I'm here, I've been here since 2001.",
    "def f(x):\n    return x + 1\n\nfor i in range(100):\n    print(f(i))\n\n\nThe end.  Two  spaces.",
    "Привет, мир! Ещё раз привет. naïve café déjà vu. 你好，世界。 こんにちは世界。 안녕하세요.",  # noqa: RUF001
]


def tokenizer(kind: str, size: int = 600) -> Any:
    """A tokenizer of transformers: `<s>` and `</s>` are special, `<tool>` is added and not special."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    if kind.startswith("spm"):
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special + bytes_, show_progress=False)
        replace, prepend = normalizers.Replace(" ", "▁"), normalizers.Prepend("▁")
        if kind == "spm-metaspace":
            made.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=False)
        else:
            made.normalizer = normalizers.Sequence([prepend, replace] if kind == "spm" else [replace])
        made.train_from_iterator([line.replace("\n", " ") for line in PAGE], trainer)
        rules = json.loads(made.to_str())
        rules["added_tokens"] = rules["added_tokens"][: len(special)]  # the trainer takes bytes in as special alone
        made = Tokenizer.from_str(json.dumps(rules))
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        made = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
        split = {"llama-bpe": r"|\p{N}{1,3}", "qwen2": r"|\p{N}"}
        steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind not in split)]
        if kind in split:
            steps.insert(0, pre_tokenizers.Split(Regex(LETTERS + split[kind] + REST), "isolated"))
        if kind == "smollm":
            steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
        made.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made.train_from_iterator(
            PAGE, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
        )  # fmt: skip
        made.decoder = decoders.ByteLevel()
    made.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def save_tokenizer_of(folder: Path, kind: str) -> int:
    """Put a tokenizer in a model's folder. Returns its size."""
    made = tokenizer(kind)
    made.chat_template = (
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}"
    )
    made.save_pretrained(folder)
    return len(made)
