from __future__ import annotations

from pathlib import Path

import pytest

from models.catalog import BUILT_IN, ModelEntry
from models.errors import ModelNotFound, ModelUnavailable
from models.registry import is_offline, resolve_source


def entry(source: str) -> ModelEntry:
    return ModelEntry(name="mine", engine="transformers", source=source, context_tokens=64)


def test_a_smoke_model_is_made_once(tmp_path: Path):
    folder = resolve_source(entry("smoke:small"), tmp_path)
    made_at = (Path(folder) / "model.safetensors").stat().st_mtime_ns
    assert resolve_source(entry("smoke:small"), tmp_path) == folder
    assert (Path(folder) / "model.safetensors").stat().st_mtime_ns == made_at
    with pytest.raises(ModelNotFound, match=r"small, medium"):
        resolve_source(entry("smoke:huge"), tmp_path)


DEMOS = [row.source for row in BUILT_IN if row.source.startswith("demo:")]


@pytest.mark.parametrize("source", DEMOS)
def test_a_demo_model_comes_with_the_package(tmp_path: Path, source: str):
    folder = Path(resolve_source(entry(source), tmp_path))
    assert (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file()


def test_a_demo_model_that_there_is_not_is_said_so(tmp_path: Path):
    assert len(DEMOS) >= 2
    with pytest.raises(ModelUnavailable, match="no folder 'demo:huge'"):
        resolve_source(entry("demo:huge"), tmp_path)
    assert is_offline("demo:small") and is_offline("smoke:small") and is_offline(str(tmp_path))
    assert not is_offline("org/model")


def test_a_folder_is_used_as_it_is(tmp_path: Path):
    assert resolve_source(entry(str(tmp_path)), tmp_path / "data") == str(tmp_path)


@pytest.mark.parametrize("source", ["", "/no/such/folder", "./no-such-folder"])
def test_a_missing_folder_is_one_clear_line(source: str, tmp_path: Path):
    with pytest.raises(ModelUnavailable, match=r"^Model 'mine': .*set `source`") as caught:
        resolve_source(entry(source), tmp_path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("source", ["nobody/no-such-model", "not a hub id"])
def test_a_model_that_cannot_be_had_is_one_clear_line(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match=r"^Model 'mine': .*HF_HOME") as caught:
        resolve_source(entry(source), tmp_path)
    assert source in caught.value.message
    assert "\n" not in caught.value.message
