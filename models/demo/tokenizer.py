"""The tokenizer of the demo models: a small byte-level BPE that spells out what must be spelled.

Digits stand alone, and so does every letter of a word before a closing double quote: `"cat"` is five tokens, so that
reversing and counting can be learned. Any text survives the round trip.

`tokenizer.json` beside this file is what the weights were trained with. It was made by

    python -m models.demo.tokenizer SOME_FILE

from the text of data version 1, and stays when the data changes: with another one, all models begin anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from models.demo.dataset import training_items
from models.demo.items import Item

VOCABULARY = 1280
BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1
_ROLES = ("system", "user", "assistant", "tool")
_SPECIAL = (BOS, EOS, *(f"<|{role}|>" for role in _ROLES))
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|' + ('system' if m['role'] == 'developer' else m['role']) + '|>' + m['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_SAMPLE_SEED, _SAMPLE_ITEMS = 0, 30_000


@cache
def trained() -> Any:
    """The `tokenizers.Tokenizer` of all demo models."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(__file__).with_name("tokenizer.json")))


def train() -> Any:
    """A new `tokenizers.Tokenizer` for the generator's text: the same on every machine. Takes some seconds."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex('[A-Za-z](?=[A-Za-z]*")'), "isolated"),
            pre_tokenizers.Split(Regex(" ?[0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_sample(), trainer)
    return tokenizer


def _sample() -> Iterable[str]:
    for item in training_items(_SAMPLE_SEED, 0, _SAMPLE_ITEMS):
        yield from (message["content"] for message in item.messages)
        yield item.answer


def encoded(items: Sequence[Item]) -> list[tuple[list[int], int]]:
    """Token ids of each whole conversation with its answer and the end, and how many of the first are the prompt."""
    texts = [text for item in items for text in (_prompt(item), f"{item.answer}{EOS}")]
    ids = [encoding.ids for encoding in trained().encode_batch(texts)]
    return [(prompt + answer, len(prompt)) for prompt, answer in zip(ids[::2], ids[1::2], strict=True)]


def _prompt(item: Item) -> str:
    turns = "".join(f"<|{message['role']}|>{message['content']}{EOS}" for message in item.messages)
    return f"{BOS}{turns}<|assistant|>"


def save(folder: Path, context_tokens: int) -> None:
    """The files that `AutoTokenizer` reads."""
    trained().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "model_max_length": context_tokens,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    train().save(sys.argv[1])
