"""Trains the cache's verifier: `python -m router.cache_training.train --out router/weights/verifier.safetensors`.

Writes questions, encodes them with the packaged encoder, takes every pair that the hard vetoes let through and that
the index would bring up, and fits boosted trees. A fifth of the subjects is kept from the fit; how well its pairs are
told apart is printed and goes into the file. Takes about ten minutes on one core, nearly all of it to encode.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.encoder import Encoder
from models.trees import from_sklearn
from router.cache_training.pairs import Question, questions, teachable
from router.facts import facts
from router.pair_features import FEATURES, pair_features
from router.settings import CacheSettings
from router.vetoes import veto

Array = np.ndarray[Any, Any]
PAIRS_PER_GROUP = 260
STRANGERS = 6
"""Nearest questions of other groups that each question is paired with."""

RISES = ("cosine", "kind_same", "core_share", "words_ratio", "words_share", "in_order", "trigrams")
FALLS = (
    "left_less", "left_more", "left_chars", "left_less_chars", "left_capitals", "prepositions", "pronouns", "tenses",
    "others", "sentences", "names_less", "names_more", "quantifiers", "units", "reordered", "substituted",
)  # fmt: skip
"""What can only speak for the same question, or only against it: trees that know this hold for other texts too."""


def vectors(asked: Sequence[Question], kept: Path | None) -> Array:
    """In the order of `asked`. Those in the file `kept` are not encoded again; the others are added to it."""
    known: dict[str, Array] = {}
    if kept and kept.exists():
        with np.load(kept) as file:
            known = dict(zip(file["texts"].tolist(), file["vectors"], strict=True))
    missing = [each.text for each in asked if each.text not in known]
    if missing:
        encoder = Encoder()
        known |= {text: encoder.encode([text])[0] for text in missing}
        if kept:
            np.savez(kept, vectors=np.stack(list(known.values())), texts=np.array(list(known)))
    return np.stack([known[each.text] for each in asked])


def pairs(asked: Sequence[Question], rows: Array, seed: int) -> list[tuple[int, int]]:
    """Pairs within a group, and each question with the nearest of other groups, that a lookup would have to judge."""
    rng = random.Random(seed)
    groups: dict[str, list[int]] = defaultdict(list)
    for at, each in enumerate(asked):
        groups[each.group].append(at)
    found = []
    for members in groups.values():
        inside = [(i, j) for i in members for j in members if i < j]
        found += rng.sample(inside, min(PAIRS_PER_GROUP, len(inside)))
    for start in range(0, len(asked), 512):
        near = rows[start : start + 512] @ rows.T
        for offset, similarities in enumerate(near):
            at = start + offset
            strangers = (j for j in np.argsort(-similarities)[:64] if asked[j].group != asked[at].group)
            found += [(at, int(j)) for j, _ in zip(strangers, range(STRANGERS), strict=False)]
    return [
        (i, j)
        for i, j in found
        if teachable(asked[i], asked[j]) and float(rows[i] @ rows[j]) >= CacheSettings().threshold
    ]


def examples(
    asked: Sequence[Question], rows: Array, found: Sequence[tuple[int, int]]
) -> tuple[Array, Array, list[str]]:
    """Features, labels and groups of the pairs that no veto decides."""
    features, labels, groups = [], [], []
    for i, j in found:
        a, b = facts(asked[i].text), facts(asked[j].text)
        if veto(a, b) is None:
            features.append(pair_features(a, b, float(rows[i] @ rows[j])))
            labels.append(asked[i].meaning == asked[j].meaning)
            groups.append(asked[i].group)
    return np.array(features), np.array(labels), groups


def fit(features: Array, labels: Array, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    signs = [1 if name in RISES else -1 if name in FALLS else 0 for name in FEATURES]
    model = HistGradientBoostingClassifier(
        max_iter=160, learning_rate=0.08, max_leaf_nodes=15, max_depth=6, min_samples_leaf=40, l2_regularization=5.0,
        max_features=0.5, monotonic_cst=signs, random_state=seed,
    )  # fmt: skip
    return model.fit(features, labels)


def report(scores: Array, labels: Array) -> dict[str, str]:
    """What of the same questions is found where one of 50, 200, 1000 other ones is let through."""
    order = np.argsort(-scores)
    wrong = np.cumsum(~labels[order]) / max(1, (~labels).sum())
    right = np.cumsum(labels[order]) / max(1, labels.sum())
    return {f"right_at_1_in_{n}": f"{right[wrong <= 1 / n].max(initial=0):.3f}" for n in (50, 200, 1000)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--vectors", type=Path, help="where to keep the questions' vectors for another fit")
    options = parser.parse_args(arguments)
    asked = questions(options.seed)
    rows = vectors(asked, options.vectors)
    features, labels, groups = examples(asked, rows, pairs(asked, rows, options.seed))
    names = sorted(set(groups))
    random.Random(options.seed).shuffle(names)
    kept = frozenset(names[: len(names) // 5])
    test = np.array([group in kept for group in groups])
    trial = from_sklearn(fit(features[~test], labels[~test], options.seed), FEATURES)
    told = report(trial.probability(features[test]), labels[test])
    about = {"questions": str(len(asked)), "pairs": str(len(labels)), "same": str(int(labels.sum())), **told}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    from_sklearn(fit(features, labels, options.seed), FEATURES).save(options.out, {**about, "seed": str(options.seed)})
    sys.stdout.write("".join(f"{name} {value}\n" for name, value in about.items()))


if __name__ == "__main__":
    main()
