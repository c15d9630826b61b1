from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.demo.dataset import held_out_items
from models.demo.evaluate import Answered, answer, auroc, scores, table
from models.demo.grow import grow
from models.demo.shapes import SHAPES, Shape
from models.demo.train import Budget, Trainer, rate_scale, train

TINY = SHAPES["tiny"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def steps(trainer: Trainer, count: int) -> list[float]:
    return [trainer.train_step(scale=1.0) for _ in range(count)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "demo-tiny"
    trainer = Trainer(TINY, 1, "cpu")
    steps(trainer, 3)
    trainer.export(folder, size="tiny")
    return folder


def test_a_few_steps_lower_the_loss():
    losses = steps(Trainer(TINY, 1, "cpu"), 12)
    assert losses[-1] < 0.8 * losses[0]


def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_been(tmp_path: Path):
    whole = Trainer(TINY, 1, "cpu")
    losses = steps(whole, 5)
    first = Trainer(TINY, 1, "cpu")
    assert steps(first, 3) == losses[:3]
    first.save_checkpoint(tmp_path)
    second = Trainer(TINY, 2, "cpu")  # other weights, until they are loaded
    second.seed = 1
    second.load_checkpoint(tmp_path)
    assert (second.step, second.tokens) == (3, first.tokens)
    assert steps(second, 2) == losses[3:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_training_to_a_number_of_steps_leaves_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trainer = Trainer(TINY, 1, "cpu")
    train(trainer, Budget(hours=1, steps=2), tmp_path)
    assert trainer.step == 2
    assert trainer.elapsed_s > 0
    assert (tmp_path / "checkpoint.pt").is_file()
    assert "held out after" in capsys.readouterr().out


def test_the_rate_warms_up_stays_and_decays():
    scales = [rate_scale(step, step / 1000) for step in range(0, 1000, 50)]
    assert scales[0] < 0.1
    assert scales[2:7] == [1.0] * 5
    assert scales[7:] == sorted(scales[7:], reverse=True)
    assert scales[-1] < 0.2


def test_budgets_count_time_or_steps():
    assert Budget(hours=0.5).progress(999, elapsed_s=900) == 0.5
    assert Budget(hours=0.5, steps=10).progress(5, elapsed_s=0) == 0.5


def test_the_exported_folder_is_whole(exported: Path):
    config = json.loads((exported / "config.json").read_text())
    assert (config["model_type"], config["dtype"], config["tie_word_embeddings"]) == ("llama", "bfloat16", True)
    assert json.loads((exported / "generation_config.json").read_text())["eos_token_id"] == 1
    training = json.loads((exported / "training.json").read_text())
    assert (training["seed"], training["steps"], training["size"]) == (1, 3, "tiny")
    assert {file.name for file in exported.iterdir()} >= {
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_evaluation_answers_and_scores(exported: Path):
    items = held_out_items(1, 12)
    answered = answer(exported, items)
    assert [one.item for one in answered] == items
    assert all(one.confidence < 0 for one in answered)
    result = scores(answered)
    assert result["questions"] == 36
    assert "demo-tiny" in table({"demo-tiny": result})


def test_evaluation_agrees_with_validation(exported: Path):
    """Two ways to the same number: decoding word by word, and looking at each next word of the right answer."""
    items = held_out_items(1, 20)
    trainer = Trainer(TINY, 1, "cpu")
    trainer.model.load_state_dict(AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).state_dict())
    seen = trainer.validate(items)
    exact = [one.answer == one.item.answer for one in answer(exported, items) if one.item.difficulty == "easy"]
    assert seen["easy"] == sum(exact) / len(exact)


def test_auroc():
    (item, *_) = held_out_items(1, 1)

    def ones(*pairs: tuple[bool, float]) -> list[Answered]:
        return [Answered(item, "", correct, confidence) for correct, confidence in pairs]

    assert auroc(ones((True, -0.1), (False, -1))) == 1
    assert auroc(ones((True, -1), (False, -0.1))) == 0
    assert auroc(ones((True, -1), (False, -1))) == 0.5
    assert auroc(ones((True, -1))) is None


def test_a_grown_model_answers_as_the_small_one_and_can_learn(exported: Path):
    wider = Trainer(Shape(96, 2, 160, {"easy": 1, "medium": 0, "hard": 0}, batch_items=16), 5, "cpu")
    grow(wider.model, exported)
    small = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    ids = torch.arange(20, 60).reshape(2, 20)
    with torch.no_grad():
        assert torch.allclose(small(ids).logits, wider.model(ids).logits, atol=1e-2)
    before = {name: tensor.clone() for name, tensor in wider.model.named_parameters()}
    steps(wider, 2)
    assert not [name for name, tensor in wider.model.named_parameters() if torch.equal(before[name], tensor)]
