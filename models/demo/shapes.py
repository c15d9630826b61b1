"""The sizes of the demo models and what is written into their config.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from models.demo.dataset import Emphasis, Mixture
from models.demo.tokenizer import BOS_ID, EOS_ID, VOCABULARY

Size = Literal["tiny", "small", "medium", "large"]
SIZES: tuple[str, ...] = get_args(Size)
CONTEXT_TOKENS = 2048  # what engines may be given; training sees fewer than 100


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama and how it is trained. Heads are 32 wide: a small model needs several more than it needs wide ones.

    `mixture` is how much of each difficulty it practises: a small model gains nothing from what it cannot learn.
    `emphasis` is the same by kind: what is slow to learn is practised more.
    `learning_rate` is the peak for the matrices (Muon), `embedding_rate` for embeddings and norms (AdamW).
    """

    hidden: int
    layers: int
    feed_forward: int
    mixture: Mixture
    emphasis: Emphasis = field(default_factory=dict)
    batch_items: int = 128
    learning_rate: float = 0.02
    embedding_rate: float = 3e-3

    @property
    def heads(self) -> int:
        return self.hidden // 32


_SMALL_EMPHASIS: Emphasis = {"one_digit": 2.5, "http_code": 1.5, "country": 1.5, "opposite": 1.5, "talk": 1.5}
_EMPHASIS: Emphasis = {
    **{"one_digit": 2.0, "two_digits": 2.5, "three_digits": 2.0, "then_add": 2.0, "invented": 0.4, "and_of": 0.4},
    **{"upper_case": 3.0, "lower_case": 2.0, "reverse": 2.0, "sort_digits": 1.5, "end_letter": 1.5},
    **{"is_capital": 1.5, "snippet": 0.7, "parity": 0.7, "count_letters": 0.7, "capital_task": 2.0},
}

# What the medium model still gets wrong, and less of what it never does.
_LARGE_EMPHASIS: Emphasis = {
    **{"two_digits": 3.0, "larger": 3.0, "then_add": 3.0, "again": 2.0, "invented": 0.4, "and_of": 0.4},
    **{"three_digits": 3.0, "product": 2.0, "sort_long": 2.5, "count_occurrences": 2.5, "capital_task": 3.0},
    **{"snippet": 0.4, "parity": 0.4, "count_letters": 0.4, "numbered_snippet": 0.4, "country": 1.5, "one_digit": 2.0},
}

SHAPES: dict[str, Shape] = {
    "tiny": Shape(64, 1, 128, {"easy": 1, "medium": 0, "hard": 0}, {}, batch_items=32),  # for tests
    "small": Shape(128, 4, 384, {"easy": 0.50, "medium": 0.35, "hard": 0.15}, _SMALL_EMPHASIS),
    "medium": Shape(
        192, 6, 512, {"easy": 0.15, "medium": 0.47, "hard": 0.38}, _EMPHASIS, learning_rate=0.01, embedding_rate=2e-3
    ),
    "large": Shape(
        256,
        8,
        704,
        {"easy": 0.12, "medium": 0.40, "hard": 0.48},
        _LARGE_EMPHASIS,
        learning_rate=0.004,
        embedding_rate=8e-4,
    ),
}


def config(shape: Shape) -> dict[str, Any]:
    """The arguments of transformers' `LlamaConfig`."""
    return {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": 32,
        "intermediate_size": shape.feed_forward,
        "max_position_embeddings": CONTEXT_TOKENS,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": EOS_ID,
    }
