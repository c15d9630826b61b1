from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from models.encoder import MAX_WINDOWS, PACKAGED, Encoder, _identity, _resolve
from models.encoder_graph import encoder_model
from models.errors import ModelUnavailable

if TYPE_CHECKING:  # seconds to import, for every process that only looks which tests there are
    from sentence_transformers import SentenceTransformer


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


def test_like_sentences_are_near_and_unlike_ones_far(encoder: Encoder) -> None:
    vectors = encoder.encode(["How do I boil an egg?", "What's the way to boil eggs?", "Who is the king of Spain?"])
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.9 > 0.3 > vectors[0] @ vectors[2]


def test_a_vector_does_not_depend_on_its_batch(encoder: Encoder) -> None:
    texts = ["short", "a rather longer sentence about nothing much at all", "x"]
    together = encoder.encode(texts)
    assert np.allclose(together, np.concatenate([encoder.encode([text]) for text in texts]), atol=1e-5)


def test_it_says_what_its_vectors_do_not_stand_for(encoder: Encoder) -> None:
    one, two, too_long = "word " * 254, "word " * 255, "word " * (254 * MAX_WINDOWS + 1)
    readings = encoder.read(["hello", one, two, too_long, "an emoji \U0001f600"])
    assert [reading.windows for reading in readings] == [1, 1, 2, MAX_WINDOWS + 1, 1]
    assert [reading.known for reading in readings] == [True, True, True, True, False]
    assert [reading.whole for reading in readings] == [True, True, True, False, False]
    assert [reading.tokens for reading in readings[:3]] == [3, 256, 257]


def test_every_window_of_a_long_text_counts(encoder: Encoder) -> None:
    first, second = "The cat sat on the mat. " * 36, "Interest rates rose again in May. " * 30
    a, b, both, short = encoder.encode([first, second, first + second, "hi"])
    assert both @ a > a @ b + 0.2 < both @ b
    assert np.allclose(np.linalg.norm(both), 1, atol=1e-5)
    assert np.allclose(short, encoder.encode(["hi"])[0], atol=1e-6)


@pytest.fixture(scope="module")
def peer() -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(_resolve(PACKAGED), device="cpu")


TEXTS = [
    "How do I boil an egg?",
    "Where is C\u00f4te d'Ivoire, and what is its GDP in 2019?",
    "x",
    "Sort \u4e2d\u6587 words " * 20,
]


def test_at_full_precision_the_vectors_are_those_of_sentence_transformers(peer: SentenceTransformer) -> None:
    theirs = peer.encode(TEXTS, normalize_embeddings=True)
    assert np.allclose(Encoder(precision="float32").encode(TEXTS), theirs, atol=1e-5)


def test_with_eight_bits_they_are_close_to_them(encoder: Encoder, peer: SentenceTransformer) -> None:
    theirs = peer.encode(TEXTS, normalize_embeddings=True)
    assert ((encoder.encode(TEXTS) * theirs).sum(axis=1) > 0.97).all()


def test_another_model_is_run_by_sentence_transformers(
    encoder: Encoder, peer: SentenceTransformer, tmp_path: Path
) -> None:
    """It has one that `encoder_graph` cannot build: pooled by its first token."""
    for file in Path(_resolve(PACKAGED)).iterdir():
        if file.name != "1_Pooling":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "1_Pooling").mkdir()
    pooling = json.loads((Path(_resolve(PACKAGED)) / "1_Pooling/config.json").read_text())
    pooling |= {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(pooling))
    other = Encoder(str(tmp_path))
    theirs = type(peer)(str(tmp_path), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert np.allclose(other.encode(TEXTS), theirs, atol=1e-5)
    assert other.read(["hello"])[0].whole and other.window_tokens == 256
    assert other.identity != encoder.identity, "the same weights, and other vectors of them"


def test_an_encoder_is_known_by_its_weights_and_how_they_are_run(encoder: Encoder) -> None:
    assert Encoder().identity == encoder.identity != Encoder(precision="float32").identity
    assert _identity("BAAI/bge-small-en", "") != _identity("BAAI/bge-base-en", "")


def test_whatever_file_of_a_model_changes_it_is_another_encoder(tmp_path: Path) -> None:
    known = {_identity(str(tmp_path), "")}
    for name in ("config.json", "pytorch_model.bin", "2_Dense/model.safetensors", "vocab.txt", "onnx/model.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        for text in ("one", "two"):
            (tmp_path / name).write_text(text)
            known.add(_identity(str(tmp_path), ""))
    assert len(known) == 11
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/fetched.json").write_text("today")
    assert _identity(str(tmp_path), "") in known


def test_the_graph_is_sound(tmp_path: Path) -> None:
    import onnx

    for precision in ("int8", "float32"):
        (tmp_path / "encoder.onnx").write_bytes(encoder_model(Path(_resolve(PACKAGED)), precision))
        model = onnx.load(tmp_path / "encoder.onnx")
        onnx.checker.check_model(model)
        assert [node.name for node in model.graph.output] == ["vectors"]
    assert (tmp_path / "encoder.onnx").stat().st_size > 80_000_000


def test_it_needs_no_torch() -> None:
    code = "import sys; from models.encoder import Encoder; Encoder().encode(['hi']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"


def test_a_model_that_cannot_be_loaded_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailable, match=r"'/no/such/folder' .*encoder\.source"):
        Encoder("/no/such/folder")


def test_a_device_that_the_node_lacks_says_what_to_set() -> None:
    with pytest.raises(ModelUnavailable, match=r" on 'cuda:99' .*encoder\.device"):
        Encoder(device="cuda:99")  # which no node has


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_vectors_are_the_same(encoder: Encoder) -> None:
    texts = ["How do I boil an egg?", "Who is the king of Spain?"]
    assert np.allclose(Encoder(device="cuda").encode(texts), Encoder(precision="float32").encode(texts), atol=1e-4)
