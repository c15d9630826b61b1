from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from models.errors import ModelNotFound
from models.smoke import Kind, ensure_smoke_model

FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_smoke_model("small", tmp_path_factory.mktemp("smoke"))


@pytest.mark.parametrize("kind", get_args(Kind))
def test_each_kind_is_a_whole_folder_and_the_same_every_time(kind: Kind, tmp_path: Path):
    first, second = (ensure_smoke_model(kind, tmp_path / name) for name in ("a", "b"))
    assert {file.name for file in first.iterdir()} >= FILES
    assert all(file.read_bytes() == (second / file.name).read_bytes() for file in first.iterdir())


def test_it_is_labelled_and_versioned(small: Path):
    assert small.name == "smoke-small-v1"
    assert "Random weights" in (small / "README.md").read_text()


def test_heads_are_of_a_width_that_every_engine_has(small: Path):
    config = json.loads((small / "config.json").read_text())
    assert config["hidden_size"] // config["num_attention_heads"] == config["head_dim"] == 64
    assert config["max_position_embeddings"] == 1024


def test_processes_at_the_same_moment_share_one_model(tmp_path: Path):
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: ensure_smoke_model("phi", tmp_path), range(8)))
    assert set(folders) == {tmp_path / "smoke-phi-v1"}
    assert [folder.name for folder in tmp_path.iterdir()] == ["smoke-phi-v1"]  # nothing half made is left


def test_any_text_survives_the_tokenizer(small: Path):
    tokenizer = Tokenizer.from_file(str(small / "tokenizer.json"))
    for text in ("Hello, world", "  two  spaces\n\ttab", "é ß 日本語 😀", "a\x00b"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("What is the capital of France?").ids) < 10


def test_only_words_and_the_end_can_be_said(small: Path):
    head = load_file(small / "model.safetensors")["lm_head.weight"]
    tokenizer = Tokenizer.from_file(str(small / "tokenizer.json"))
    spoken = np.flatnonzero(head.any(axis=1))
    assert 600 < len(spoken) < 1024
    assert tokenizer.token_to_id("</s>") in spoken
    assert tokenizer.token_to_id("<|user|>") not in spoken
    assert all("\ufffd" not in tokenizer.decode([token]) for token in spoken)


def test_an_unknown_kind_names_those_there_are(tmp_path: Path):
    with pytest.raises(ModelNotFound, match=r"small, medium, phi, mistral"):
        ensure_smoke_model("large", tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_folder(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "models.smoke", "phi", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == tmp_path / "smoke-phi-v1"
    wrong = subprocess.run(
        [sys.executable, "-m", "models.smoke", "huge", str(tmp_path)], capture_output=True, text=True
    )
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("There is no smoke model 'huge'")
