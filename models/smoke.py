"""Smoke models: small chat models with random weights, made on this machine in seconds, for a first start without a
download. They prove the whole path and write nonsense.

    python -m models.smoke small /some/folder

Weights, tokenizer and chat template are all written here, in the Hugging Face folder layout that transformers and vLLM
load. The same version always gives the same model.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from models.errors import ModelNotFound

Kind = Literal["small", "medium", "phi", "mistral"]
VERSION = 1  # part of the folder's name: raise it with any change below that changes a file

_VOCAB = 1024
_BOS, _EOS = "<s>", "</s>"
_SPECIAL = (_BOS, _EOS, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|' + ('system' if m['role'] == 'developer' else m['role']) + '|>\\n' + m['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_LOGIT_SPREAD = 4.0  # standard deviation of the logits: sampling at temperature 1 then has some tens of likely words


@dataclass(frozen=True, slots=True)
class _Shape:
    """Heads are 64 wide, which every attention backend of vLLM (CPU and GPU) and transformers has kernels for."""

    architecture: Literal["llama", "phi", "mistral"]
    hidden: int
    layers: int
    kv_heads: int
    feed_forward: int
    context_tokens: int
    seed: int

    @property
    def heads(self) -> int:
        return self.hidden // 64


_SHAPES: dict[str, _Shape] = {
    "small": _Shape("llama", 128, 4, 1, 384, 1024, seed=1),
    "medium": _Shape("llama", 256, 6, 2, 768, 2048, seed=2),
    "phi": _Shape("phi", 128, 2, 2, 512, 1024, seed=3),
    "mistral": _Shape("mistral", 128, 2, 1, 384, 1024, seed=4),
}


def ensure_smoke_model(kind: Kind, folder: Path) -> Path:
    """The folder of the smoke model in `folder`, made when it is not there yet.

    It appears under its name in one step, so a second process never sees half of it; who comes second keeps the first.
    Raises `ModelNotFound` for a kind there is none of.
    """
    if kind not in _SHAPES:
        raise ModelNotFound(f"There is no smoke model '{kind}'; choose one of {', '.join(get_args(Kind))}.")
    target = folder / f"smoke-{kind}-v{VERSION}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    being_made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=folder))
    try:
        _write(_SHAPES[kind], kind, being_made)
        being_made.chmod(0o755)  # temporary folders and safetensors files begin private
        (being_made / "model.safetensors").chmod(0o644)
        being_made.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(being_made, ignore_errors=True)
    return target


def _write(shape: _Shape, kind: str, folder: Path) -> None:
    from safetensors.numpy import save_file

    tokenizer = _train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(shape))
    _write_json(folder / "config.json", _config(shape))
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "do_sample": False},
    )
    weights = dict(_weights(shape, _speakable(tokenizer)))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    label = f"# smoke-{kind} v{VERSION}\n\nRandom weights, made by Switchyard's `models/smoke.py` to prove the path.\n"
    (folder / "README.md").write_text(label + "What it writes means nothing.\n")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


# ---- tokenizer -----------------------------------------------------------------------------------------------------


def _train_tokenizer() -> Any:
    """A byte-level BPE tokenizer (`tokenizers.Tokenizer`): any text survives the round trip."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB,
        show_progress=False,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_TEXT.splitlines(keepends=True), trainer)
    return tokenizer


def _speakable(tokenizer: Any) -> list[int]:
    """The ids a model may answer with: tokens that are text by themselves, and the end of the answer."""
    ids = [tokenizer.token_to_id(_EOS)]
    for token_id in range(len(_SPECIAL), tokenizer.get_vocab_size()):
        text = tokenizer.decode([token_id])
        if len(text) > 1 and text.isprintable() and "\ufffd" not in text:
            ids.append(token_id)
    return ids


def _tokenizer_config(shape: _Shape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _BOS,
        "eos_token": _EOS,
        "pad_token": _EOS,
        "model_max_length": shape.context_tokens,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }


# ---- weights -------------------------------------------------------------------------------------------------------


def _config(shape: _Shape) -> dict[str, Any]:
    common = {
        "model_type": shape.architecture,
        "architectures": [f"{shape.architecture.capitalize()}ForCausalLM"],
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.feed_forward,
        "max_position_embeddings": shape.context_tokens,
        "vocab_size": _VOCAB,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "rope_theta": 10000.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    if shape.architecture == "phi":
        return {**common, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5}
    own = {"head_dim": 64, "hidden_act": "silu", "rms_norm_eps": 1e-5}
    return {**common, **own, **({"sliding_window": None} if shape.architecture == "mistral" else {})}


def _weights(shape: _Shape, speakable: list[int]) -> Iterator[tuple[str, Any]]:
    """Names and float32 arrays of the checkpoint. Every matrix keeps the variance of what it is given, so that all
    layers count and answers depend on the whole prompt."""
    import numpy as np

    random = np.random.default_rng(shape.seed)
    is_phi = shape.architecture == "phi"

    def linear(name: str, outputs: int, inputs: int, gain: float = 1.0) -> Iterator[tuple[str, Any]]:
        weight = random.standard_normal((outputs, inputs), dtype=np.float32) * (gain / inputs**0.5)
        yield f"{name}.weight", weight.astype(np.float32)
        if is_phi:
            yield f"{name}.bias", np.zeros(outputs, np.float32)

    def norm(name: str) -> Iterator[tuple[str, Any]]:
        yield f"{name}.weight", np.ones(shape.hidden, np.float32)
        if is_phi:
            yield f"{name}.bias", np.zeros(shape.hidden, np.float32)

    hidden, kv_width, feed_forward = shape.hidden, shape.kv_heads * 64, shape.feed_forward
    yield "model.embed_tokens.weight", random.standard_normal((_VOCAB, hidden), dtype=np.float32)
    for index in range(shape.layers):
        layer = f"model.layers.{index}"
        yield from norm(f"{layer}.input_layernorm")
        yield from linear(f"{layer}.self_attn.q_proj", hidden, hidden, gain=2.0)  # sharper attention: prompts matter
        yield from linear(f"{layer}.self_attn.k_proj", kv_width, hidden)
        yield from linear(f"{layer}.self_attn.v_proj", kv_width, hidden)
        if is_phi:
            yield from linear(f"{layer}.self_attn.dense", hidden, hidden)
            yield from linear(f"{layer}.mlp.fc1", feed_forward, hidden)
            yield from linear(f"{layer}.mlp.fc2", hidden, feed_forward)
            continue
        yield from linear(f"{layer}.self_attn.o_proj", hidden, hidden)
        yield from norm(f"{layer}.post_attention_layernorm")
        yield from linear(f"{layer}.mlp.gate_proj", feed_forward, hidden)
        yield from linear(f"{layer}.mlp.up_proj", feed_forward, hidden)
        yield from linear(f"{layer}.mlp.down_proj", hidden, feed_forward)
    yield from norm("model.final_layernorm" if is_phi else "model.norm")
    silent = np.setdiff1d(np.arange(_VOCAB), speakable)
    for name, array in linear("lm_head", _VOCAB, hidden, gain=_LOGIT_SPREAD):
        array[silent] = 0.0  # a logit of 0 is never the largest of a thousand, and far below the likely ones
        yield name, array


# Own words, enough of them for a thousand tokens.
_TEXT = """\
A railway yard sorts wagons: each one rolls down a slope, a hand throws a switch, and the wagon finds its own track.
This yard sorts questions. A short question goes to a small engine, a hard question goes to a large one.
Most questions have been asked before, and an answer that was good yesterday is often still good today.
When nobody has asked, somebody must think, and thinking costs time, power and money.
The morning train brings letters, parcels, fresh bread and the people who work in the city.
Seven bridges cross the river between the old harbour and the northern station.
In winter the snow lies deep, the points freeze, and two men walk along the line with lamps and brooms.
They know every signal by its number and every driver by the sound of the whistle.
Water boils at one hundred degrees, iron melts far above that, and patience ends somewhere in between.
What is the capital of France? Paris is the capital of France. How many legs does a spider have? It has eight.
Please write a function that adds two numbers and returns the sum, then explain every step in simple words.
def add(first, second): return first + second  # the shortest program in the book
for name in names: print("hello", name); if count > 10: break; else: continue; while True: pass
The answer depends on what you mean by fast: how soon the first word comes, or how soon the last one does.
Some people like coffee, others drink tea, and a few ask only for a glass of cold water with lemon.
A good map shows what matters and leaves out everything else; a bad map shows everything and helps nobody.
First measure, then decide, then build, then measure again, because memory is short and numbers are honest.
My grandmother kept bees behind the house, and in summer the kitchen smelled of honey, wax and warm wood.
Light travels faster than sound, so the flash of the storm arrives before its thunder.
Several large ships waited outside the port while small boats carried grain, cotton and machines ashore.
Nothing is lost when a mistake is found early; much is lost when it is hidden until the end.
The teacher asked the children to draw a circle, a square and a triangle, and to colour them red, green and blue.
If the number is even, divide it by two; if it is odd, multiply it by three and add one; repeat until it is one.
Every system has limits: space, energy, attention, and the distance that a message can travel in a second.
A clear sentence has a subject, a verb and a reason to exist. A clear program has much the same.
You can open the window, close the door, move the table, or leave the room exactly as it is.
Doctors, farmers, sailors and clerks all learned to read the weather from the clouds above the hills.
The library holds thousands of books about history, music, science, law, gardens, animals and distant countries.
Once upon a time a young fox lived under an oak tree at the edge of a quiet village near the forest.
It listened to the owl, argued with the crow, shared its dinner with the mouse, and slept until evening.
To compare two things fairly, change only one condition, keep the others fixed, and write down what happened.
Between spring and autumn the fields turn from brown to green, from green to gold, and back to brown.
She wondered whether the letter had arrived, whether anyone would answer, and what the answer might be.
Better a small tool that always works than a great machine that usually does.
Where does the road begin? Wherever you stand. Where does it go? That depends on the weather and your shoes.
Today, tomorrow, Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday; January, June, December.
One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, twenty, fifty, hundred, thousand, million.
General instructions: read carefully, check the result, report problems politely, thank your colleagues, go home.
"""


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python -m models.smoke {{{','.join(get_args(Kind))}}} FOLDER")
    try:
        print(ensure_smoke_model(sys.argv[1], Path(sys.argv[2])))  # type: ignore[arg-type]
    except ModelNotFound as error:
        sys.exit(error.message)
