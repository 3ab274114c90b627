"""A byte-pair tokenizer in CLIP's layout, learnt from the captions of `mini` and the ImageNet class
names.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from tools.mini.words import IDENTIFIERS

VOCABULARY = 2048
CONTEXT = 32
START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's own splitting: letters, single digits, other signs (openai/CLIP, simple_tokenizer.py).
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train(texts: Iterable[str], folder: Path) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json that `CLIPTokenizer.from_pretrained`
    reads.

    The reserved identifiers and the two marks come last, the end mark with the highest id:
    open_clip finds the end of a text by arg-max over ids.
    """
    from tokenizers import Regex

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges_wanted = VOCABULARY - 2 * len(letters) - len(IDENTIFIERS) - 2
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(letters) + merges_wanted,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]][
        :merges_wanted
    ]
    pieces = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *("".join(pair) for pair in merges),
    ]
    pieces = list(dict.fromkeys(pieces))
    pieces += [*IDENTIFIERS, START, END]
    _write(folder, {piece: number for number, piece in enumerate(pieces)}, merges)


def _write(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    reserved = {
        str(vocabulary[word]): {
            "content": word,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": word in (START, END),
        }
        for word in (*IDENTIFIERS, START, END)
    }
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "added_tokens_decoder": reserved,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "do_lower_case": True,
        "model_max_length": CONTEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
