from __future__ import annotations

import numpy as np
import pytest
import torch

from models.encoder import Encoder
from models.errors import ModelUnavailable


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
    fits, too_long = "word " * 254, "word " * 255
    readings = encoder.read(["hello", fits, too_long, "an emoji \U0001f600"])
    assert [reading.fits for reading in readings] == [True, True, False, True]
    assert [reading.known for reading in readings] == [True, True, True, False]
    assert [reading.tokens for reading in readings[:3]] == [3, 256, 257]
    tail = too_long + "and something else entirely"
    assert np.allclose(*encoder.encode([too_long, tail]), atol=1e-5)


def test_a_model_that_cannot_be_loaded_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailable, match=r"'/no/such/folder' .*encoder\.source"):
        Encoder("/no/such/folder")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_the_node_lacks_says_what_to_set() -> None:
    with pytest.raises(ModelUnavailable, match=r"on 'cuda' .*encoder\.device"):
        Encoder(device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_vectors_are_the_same(encoder: Encoder) -> None:
    texts = ["How do I boil an egg?", "Who is the king of Spain?"]
    assert np.allclose(Encoder(device="cuda").encode(texts), encoder.encode(texts), atol=1e-4)
