"""The learned classifier at work: weights read from safetensors, evaluated by numpy. `train` makes the files.

For prompts of two kinds, lettered options and sums told as stories, it has experts trained on public outcomes; for all
others it knows kinds of work (`open_tasks`). An expert's word is a logistic regression over a few opinions: a ridge
regression on hashed words (or characters), one on the signs, and trees.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.trees import Trees
from models.trees import load as load_trees
from router.learned.hashing import Sparse, char_terms, seen_places, tokens, word_terms
from router.learned.open_tasks import open_chances
from router.learned.signs import Kind, kind_of, shape_of, signs

FORMAT = "switchyard-router-1"
WEIGHTS = Path(__file__).parent / "weights"
Array = np.ndarray[Any, Any]
LEAST_KNOWN = 0.5
"""Share of a prompt's words that were seen in training, below which the classifier abstains."""


@dataclass(frozen=True, slots=True)
class Chances:
    """That a small and that a large model answer a prompt well, both in (0, 1), calibrated for `kind`s with an expert.

    known: share of the prompt's words that training saw. work: for an open prompt, the kind of work it looks most like.
    """

    small: float
    large: float
    kind: Kind
    work: str
    known: float

    @property
    def abstains(self) -> bool:
        return self.known < LEAST_KNOWN

    @property
    def need(self) -> float:
        """What the large model adds, as a score in (0, 1); 0.5: nothing. A negative gain is one too: some prompts ask
        for a form of answer that large models keep to less."""
        return (1 + self.large - self.small) / 2


@dataclass(frozen=True, slots=True)
class Expert:
    """terms: [places, 2] weights of the hashed terms, small and large model, with `terms_at_zero` [2]; hand,
    hand_at_zero: the same of the standardised signs; mix: [2, opinions + 1], the last its intercept."""

    terms: Array
    terms_at_zero: Array
    hand: Array
    hand_at_zero: Array
    mix: Array


class Classifier:
    """Immutable. `version` names the weights."""

    def __init__(self, folder: Path = WEIGHTS) -> None:
        """Raises ValueError, which names the file, for weights that are missing, damaged or of another format."""
        arrays, head = read_arrays(folder / "router.safetensors", FORMAT)
        self.version = f"1-{head['digest'][:8]}"
        self.sign_names: tuple[str, ...] = tuple(json.loads(head["signs"]))
        self._trees = {
            name: load_trees(folder / f"{name}.safetensors") for name in ("choice_small", "choice_large", "steps")
        }
        _check_names(self.sign_names, self._trees, folder)
        self._word_idf, self._char_idf = arrays["word_idf"].astype(np.float64), arrays["char_idf"].astype(np.float64)
        self._mean, self._scale = arrays["sign_mean"], arrays["sign_scale"]
        self._steps_hand = arrays["steps_hand"]
        self._seen = np.unpackbits(arrays["seen"])
        self._experts = {
            kind: Expert(*(arrays[f"{kind}_{part}"] for part in Expert.__slots__)) for kind in ("choice", "problem")
        }

    def chances(self, text: str) -> Chances:
        """Any text. Pure; how long it takes grows with the text: docs/routing.md has figures."""
        shape = shape_of(text)
        found = signs(shape)
        kind = kind_of(shape, found)
        words = tokens(text)
        places = seen_places(text, words)
        known = float(self._seen[places].mean()) if len(places) else 1.0
        if kind == "open":
            small, large, work = open_chances(found)
            return Chances(small, large, kind, work, known)
        opinions = self._opinions(kind, np.array(list(found.values())), text, words)
        small, large = map(float, mixed(self._experts[kind].mix, opinions[None])[0])
        return Chances(small, large, kind, "math" if kind == "problem" else "question", known)

    def _opinions(self, kind: Kind, values: Array, text: str, words: list[str]) -> Array:
        """[opinions, 2]"""
        expert = self._experts[kind]
        standard = standardised(values, self._mean, self._scale)
        if kind == "choice":
            from_terms = weighted(word_terms(text, words), self._word_idf, expert.terms) + expert.terms_at_zero
            row = values[None, :]
            grown = [self._trees[f"choice_{size}"].raw(row)[0] for size in ("small", "large")]
            return np.stack([from_terms, np.array(grown)])
        from_terms = weighted(char_terms(text), self._char_idf, expert.terms) + expert.terms_at_zero
        by_hand = standard @ expert.hand + expert.hand_at_zero
        steps = steps_of(self._trees["steps"].raw(values[None, :])[0], standard, self._steps_hand)
        return np.stack([from_terms, by_hand, np.full(2, steps)])


def standardised(values: Array, mean: Array, scale: Array) -> Array:
    clipped: Array = np.clip((values - mean) / scale, -4.0, 4.0)
    return clipped


def weighted(terms: Sparse, idf: Array, weights: Array) -> Array:
    """tf-idf of unit length, times `weights`; shape [2]."""
    places, counts = terms
    values = counts * idf[places]
    length = float(np.sqrt((values * values).sum())) or 1.0
    summed: Array = (values / length) @ weights[places].astype(np.float64)
    return summed


def steps_of(grown: float, standard: Array, by_hand: Array) -> float:
    """How many steps of arithmetic a sum takes: what the trees and a ridge regression say, in equal parts."""
    return 0.5 * grown + 0.5 * float(standard @ by_hand[:-1] + by_hand[-1])


def mixed(mix: Array, opinions: Array) -> Array:
    """Chances [n, 2] from opinions [n, opinions, 2]: logistic in each, and where `mix` has a third row, that one says
    how far they are apart."""
    odds = np.einsum("nij,ji->nj", opinions, mix[:2, :-1]) + mix[:2, -1]
    chances: Array = 1 / (1 + np.exp(-np.clip(odds, -30, 30)))
    if len(mix) == 3:
        gained = np.stack(
            [opinions[:, 0, 1] - opinions[:, 0, 0], opinions[:, 1, 1] - opinions[:, 1, 0], opinions[:, 2, 0]]
        )
        half = (mix[2, :-1] @ gained + mix[2, -1]) / 2
        middle = np.clip(chances.mean(axis=1), 0.01 + np.abs(half), 0.99 - np.abs(half))
        chances = np.stack([middle - half, middle + half], axis=1)
    return chances


def read_arrays(path: Path, wanted: str) -> tuple[dict[str, Array], dict[str, str]]:
    """The numbers and the header of a file of the format `wanted`. Raises ValueError, which names the file, for any
    other."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            head = file.metadata() or {}
            if head.get("format") != wanted:
                raise ValueError(f"{path} is no {wanted} file")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} can't be read as {wanted}: {error}") from error
    if digest_of(arrays) != head.get("digest"):
        raise ValueError(f"{path} is damaged: its digest is not that of its weights. Install the project again")
    return arrays, head


def digest_of(arrays: dict[str, Array]) -> str:
    whole = hashlib.sha256()
    for name in sorted(arrays):
        whole.update(name.encode() + arrays[name].tobytes())
    return whole.hexdigest()


def _check_names(names: tuple[str, ...], trees: dict[str, Trees], folder: Path) -> None:
    """The weights belong to the signs that this code makes, in this order."""
    shape = shape_of("")
    if names != tuple(signs(shape)) or any(grown.features != names for grown in trees.values()):
        raise ValueError(f"the weights in {folder} were trained on other signs than this code reads: train them again")
