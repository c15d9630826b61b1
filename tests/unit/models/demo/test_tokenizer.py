from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from models.demo.dataset import held_out_items
from models.demo.tokenizer import BOS_ID, EOS_ID, VOCABULARY, encoded, save, train, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save(folder, 512)
    return folder


@pytest.mark.parametrize(
    "text", ['Reverse "planet".', "12 + 345", "def f(a):\n    return a", "Zürich 你好 😀\t\n ", ""]
)
def test_any_text_survives_the_round_trip(text: str):
    assert trained().decode(trained().encode(text).ids) == text


def test_quoted_words_are_spelled_and_digits_stand_alone():
    assert trained().encode('say "planet"').tokens[-7:] == [*"planet", '"']
    assert trained().encode("capital 1234").tokens[-4:] == ["Ġ1", "2", "3", "4"]
    assert trained().encode("What is the capital of France?").tokens[-3:] == ["Ġof", "ĠFrance", "?"]


def test_it_is_full_and_knows_its_special_tokens():
    assert trained().get_vocab_size() == VOCABULARY
    assert (trained().token_to_id("<s>"), trained().token_to_id("</s>")) == (BOS_ID, EOS_ID)


def test_training_encodes_what_the_chat_template_writes(folder: Path):
    """Else the model would be asked in another way than it was taught."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for item, (ids, prompt_tokens) in zip(items := held_out_items(2, 30), encoded(items), strict=True):
        asked = tokenizer.apply_chat_template(list(item.messages), add_generation_prompt=True, return_dict=False)
        assert ids[:prompt_tokens] == asked
        assert tokenizer.decode(ids[prompt_tokens:-1]) == item.answer
        assert ids[-1] == EOS_ID


def test_the_developer_role_is_the_system_role(folder: Path):
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert "'system' if m['role'] == 'developer'" in template


def test_a_new_one_for_the_data_of_today_would_do_as_well():
    """The one that is kept was made by the same lines."""
    fresh = train()
    assert fresh.get_vocab_size() == VOCABULARY
    assert fresh.decode(fresh.encode('Reverse "planet", 12').ids) == 'Reverse "planet", 12'
    kept, new = json.loads(trained().to_str()), json.loads(fresh.to_str())
    assert [kept[part] for part in ("pre_tokenizer", "decoder", "added_tokens")] == [
        new[part] for part in ("pre_tokenizer", "decoder", "added_tokens")
    ]
