"""Makes the weights of the learned classifier, and reports how good they are on questions that no model in it saw.

    python -m router.learned.train --data DIR                 # writes router/learned/weights
    python -m router.learned.train --data DIR --cross-fit     # writes nothing but a report
    python -m router.learned.train [--data DIR] --latency     # measures how long a prompt takes

DIR holds `dev/mmlu.jsonl.gz` and `dev/gsm8k.jsonl.gz`, lines {"prompt", "weak", "strong"} (0 or 1: whether
Mixtral-8x7B-Instruct and gpt-4-1106-preview answered rightly; lm-sys/RouteLLM, Apache-2.0, questions MIT), and
`train/gsm8k_train_steps.jsonl.gz`, lines {"prompt", "steps"} (openai/grade-school-math, MIT). Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.trees import Trees, from_sklearn
from router.learned.hashing import CHAR_SIZE, SEEN_SIZE, SIZE, Sparse, char_terms, seen_places, word_terms
from router.learned.model import FORMAT, LEAST_KNOWN, WEIGHTS, Array, digest_of, mixed, standardised, steps_of
from router.learned.open_tasks import open_chances
from router.learned.signs import Kind, kind_of, shape_of, signs
from router.ports import Outlook

FOLDS = 5
INNER_FOLDS = 4
SEEN_TIMES = 2
SIZES = ("small", "large")
ALPHA = {"choice": 5.0, "problem": 1.0}
"""Of the ridge regression on terms; picked once, by cross-validation (docs/routing.md has the curve)."""
FEW_WEIGHTS = (1.0, 0.5, 1.0)
HAND_ALPHA, STEPS_ALPHA = 500.0, 100.0
GROWN = {"learning_rate": 0.05, "max_iter": 100, "max_leaf_nodes": 7, "min_samples_leaf": 20, "l2_regularization": 5.0,
         "max_features": 0.3, "max_bins": 63, "random_state": 0}  # fmt: skip
GROWN_STEPS = {"learning_rate": 0.08, "max_iter": 100, "max_leaf_nodes": 15, "max_features": 0.3, "random_state": 0}


@dataclass(frozen=True, slots=True)
class Question:
    """outcomes: whether the small and the large model answered rightly; None where nobody knows."""

    prompt: str
    outcomes: tuple[float, float] | None = None
    steps: float | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """What is made without any outcome: inverse document frequencies, means, and the counter of steps."""

    word_idf: Array
    char_idf: Array
    seen: Array
    mean: Array
    scale: Array
    steps: Trees
    steps_hand: Array


@dataclass(frozen=True, slots=True)
class Rows:
    """Questions of one kind as matrices. terms: scipy's sparse [n, places]; signs [n, signs]; outcomes [n, 2]."""

    kind: str
    prompts: tuple[str, ...]
    terms: Any
    signs: Array
    standard: Array
    steps: Array
    outcomes: Array

    def part(self, index: Array) -> Rows:
        prompts = tuple(self.prompts[i] for i in index)
        rest = (self.terms[index], self.signs[index], self.standard[index], self.steps[index], self.outcomes[index])
        return Rows(self.kind, prompts, *rest)


# ---- reading -------------------------------------------------------------------------------------------------------


def read_questions(path: Path) -> list[Question]:
    """Raises SystemExit, saying what is wrong, for a file that is not there or not like this."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found = [json.loads(line) for line in file if line.strip()]
        return [_question(row) for row in found]
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{path}: not readable as gzipped JSON lines with 'prompt' and outcomes: {error}") from error


def _question(row: dict[str, Any]) -> Question:
    outcomes = None if row.get("weak") is None else (float(row["weak"]), float(row["strong"]))
    return Question(str(row["prompt"]), outcomes, row.get("steps"))


def fold_of(prompt: str, folds: int, salt: str = "") -> int:
    """Questions about the same passage, or that differ in their options only, share a fold."""
    stem = re.split(r"\n\(?A[.)] ", prompt)[0].casefold()
    key = re.sub(r"[^a-z0-9]+", " ", stem).strip()[:300]
    return int(hashlib.sha256(f"{salt}|{key}".encode()).hexdigest(), 16) % folds


# ---- what needs no outcomes ----------------------------------------------------------------------------------------


def sign_rows(prompts: Sequence[str]) -> Array:
    return np.array([list(signs(shape_of(prompt)).values()) for prompt in prompts])


def sign_names() -> tuple[str, ...]:
    return tuple(signs(shape_of("")))


def idf_of(prompts: Sequence[str], terms: Callable[[str], Sparse]) -> Array:
    """Smoothed, rounded to the precision of the file."""
    seen = np.zeros(SIZE if terms is word_terms else CHAR_SIZE)
    for prompt in prompts:
        seen[terms(prompt)[0]] += 1
    return (np.log((1 + len(prompts)) / (1 + seen)) + 1).astype(np.float16).astype(np.float64)


def seen_words(prompts: Sequence[str]) -> Array:
    times = np.zeros(SEEN_SIZE)
    for prompt in prompts:
        times[seen_places(prompt)] += 1
    return times >= SEEN_TIMES


def shared_parts(labelled: Sequence[Question], sums: Sequence[Question]) -> Shared:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import Ridge

    prompts, stories = [q.prompt for q in labelled], [q.prompt for q in sums]
    rows, steps = sign_rows(stories), np.array([float(q.steps or 0) for q in sums])
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    standard = standardised(rows, mean, scale)
    ridge = Ridge(alpha=STEPS_ALPHA).fit(standard, steps)
    grown = HistGradientBoostingRegressor(**GROWN_STEPS).fit(rows, steps)
    return Shared(
        word_idf=idf_of([*prompts, *stories], word_terms),
        char_idf=idf_of(stories, char_terms),
        seen=seen_words([*prompts, *stories]),
        mean=mean,
        scale=scale,
        steps=from_sklearn(grown, sign_names()),
        steps_hand=np.append(ridge.coef_, ridge.intercept_),
    )


def rows_of(kind: str, questions: Sequence[Question], shared: Shared) -> Rows:
    from scipy import sparse

    prompts = tuple(q.prompt for q in questions)
    terms, idf = (word_terms, shared.word_idf) if kind == "choice" else (char_terms, shared.char_idf)
    places, values, ends = [], [], [0]
    for prompt in prompts:
        at, counts = terms(prompt)
        weights = counts * idf[at]
        places.append(at)
        values.append(weights / (np.sqrt((weights**2).sum()) or 1.0))
        ends.append(ends[-1] + len(at))
    matrix = sparse.csr_matrix((np.concatenate(values), np.concatenate(places), ends), shape=(len(prompts), len(idf)))
    found = sign_rows(prompts)
    standard = standardised(found, shared.mean, shared.scale)
    grown = shared.steps.raw(found)
    steps = np.array([steps_of(g, row, shared.steps_hand) for g, row in zip(grown, standard, strict=True)])
    return Rows(kind, prompts, matrix, found, standard, steps, np.array([q.outcomes for q in questions], float))


# ---- an expert -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fitted:
    """The opinions of an expert before they are mixed."""

    terms: Any
    hand: Any
    trees: tuple[Trees, ...]

    def opinions(self, rows: Rows) -> Array:
        """[n, opinions, 2]"""
        from_terms = self.terms.predict(rows.terms)
        if rows.kind == "choice":
            grown = np.stack([tree.raw(rows.signs) for tree in self.trees], axis=1)
            return np.stack([from_terms, grown], axis=1)
        steps = np.tile(rows.steps[:, None], (1, 2))
        return np.stack([from_terms, self.hand.predict(rows.standard), steps], axis=1)


def fit_opinions(rows: Rows) -> Fitted:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import Ridge

    terms = Ridge(alpha=ALPHA[rows.kind], solver="sparse_cg", tol=1e-4).fit(rows.terms, rows.outcomes)
    hand = Ridge(alpha=HAND_ALPHA).fit(rows.standard, rows.outcomes)
    trees: tuple[Trees, ...] = ()
    if rows.kind == "choice":
        grown = [HistGradientBoostingClassifier(**GROWN).fit(rows.signs, rows.outcomes[:, i]) for i in range(2)]
        trees = tuple(from_sklearn(each, sign_names()) for each in grown)
    return Fitted(terms, hand, trees)


def fit_expert(rows: Rows) -> tuple[Fitted, Array]:
    """The opinions, and how they are mixed, [2, opinions + 1]: learned from what each said about questions that it had
    not seen."""
    folds = np.array([fold_of(prompt, INNER_FOLDS, "inner") for prompt in rows.prompts])
    said = None
    for fold in range(INNER_FOLDS):
        held = np.flatnonzero(folds == fold)
        opinions = fit_opinions(rows.part(np.flatnonzero(folds != fold))).opinions(rows.part(held))
        said = np.zeros((len(folds), *opinions.shape[1:])) if said is None else said
        said[held] = opinions
    assert said is not None
    mix = _mix(said, rows.outcomes) if rows.kind == "choice" else _mix_of_few(said, rows.outcomes)
    return fit_opinions(rows), mix


def _mix(said: Array, outcomes: Array) -> Array:
    from sklearn.linear_model import LogisticRegression

    found = []
    for i in range(2):
        fitted = LogisticRegression(C=1.0, max_iter=1000).fit(said[:, :, i], outcomes[:, i])
        found.append(np.append(fitted.coef_[0], fitted.intercept_[0]))
    return np.array(found)


def _mix_of_few(said: Array, outcomes: Array) -> Array:
    """Of a few hundred questions weights can't be learned: they are given, and only how far the whole is to be believed
    is learned. The third row says the gain itself, which is not lost in the noise of both chances then."""
    from sklearn.linear_model import LinearRegression, LogisticRegression

    gained = np.stack([said[:, 0, 1] - said[:, 0, 0], said[:, 1, 1] - said[:, 1, 0], said[:, 2, 0]], axis=1)
    found = []
    for opinions, sign, target in (
        (said[:, :, 0], -1.0, outcomes[:, 0]),
        (said[:, :, 1], -1.0, outcomes[:, 1]),
        (gained, 1.0, outcomes[:, 1] - outcomes[:, 0]),
    ):
        weights = np.array(FEW_WEIGHTS) * (1.0, 1.0, sign) / opinions.std(axis=0)
        fitted = LinearRegression() if sign > 0 else LogisticRegression(max_iter=1000)
        fitted.fit((opinions @ weights)[:, None], target)
        slope, intercept = float(np.ravel(fitted.coef_)[0]), float(np.ravel(fitted.intercept_)[0])
        found.append(np.append(slope * weights, intercept))
    return np.array(found)


def cross_fitted(rows: Rows, folds: int = FOLDS, salt: str = "outer") -> Array:
    """Chances [n, 2] of every question from models that were trained, mixed and calibrated without its fold."""
    fold = np.array([fold_of(prompt, folds, salt) for prompt in rows.prompts])
    chances = np.zeros((len(fold), 2))
    for number in range(folds):
        held = np.flatnonzero(fold == number)
        fitted, mix = fit_expert(rows.part(np.flatnonzero(fold != number)))
        chances[held] = mixed(mix, fitted.opinions(rows.part(held)))
    return chances


@dataclass(frozen=True, slots=True)
class Shipped:
    """What the classifier as it ships says of questions, whose kind nobody tells it. kinds: what it took each for.
    abstains [n]: of which. score [n]: of the strategy `learned`."""

    kinds: tuple[Kind, ...]
    abstains: Array
    score: Array


def as_shipped(
    rows: Rows, chances: Array, others: tuple[Fitted, Array], shared: Shared, corpus: Sequence[str]
) -> Shipped:
    """chances [n, 2]: cross-fitted, of the expert for `rows.kind`. others: the expert for the other kind, which saw
    none of `rows`. corpus: all prompts that words are known from; a question's own fold is left out there too."""
    kinds, score, abstains = [], np.zeros(len(chances)), np.zeros(len(chances), bool)
    folds = np.array([fold_of(prompt, FOLDS, "outer") for prompt in rows.prompts])
    own = dict(zip(rows.prompts, folds, strict=True))
    known = [seen_words([prompt for prompt in corpus if own.get(prompt) != fold]) for fold in range(FOLDS)]
    for i, prompt in enumerate(rows.prompts):
        shape = shape_of(prompt)
        found = signs(shape)
        kinds.append(kind := kind_of(shape, found))
        small, large = chances[i]
        if kind == "open":
            small, large, _ = open_chances(found)
        elif kind != rows.kind:
            other = rows_of(kind, [Question(prompt, (0.0, 0.0))], shared)
            small, large = mixed(others[1], others[0].opinions(other))[0]
        places = seen_places(prompt)
        abstains[i] = len(places) > 0 and known[folds[i]][places].mean() < LEAST_KNOWN
        score[i] = Outlook(float(small), float(large), "", bool(abstains[i])).score
    return Shipped(tuple(kinds), abstains, score)


# ---- writing -------------------------------------------------------------------------------------------------------


def save(folder: Path, shared: Shared, experts: dict[str, tuple[Fitted, Array]]) -> None:
    from safetensors.numpy import save_file

    arrays: dict[str, Array] = {
        "word_idf": shared.word_idf.astype(np.float16),
        "char_idf": shared.char_idf.astype(np.float16),
        "seen": np.packbits(shared.seen),
        "sign_mean": shared.mean,
        "sign_scale": shared.scale,
        "steps_hand": shared.steps_hand,
    }
    for kind, (fitted, mix) in experts.items():
        arrays |= {
            f"{kind}_terms": np.ascontiguousarray(fitted.terms.coef_.T).astype(np.float16),
            f"{kind}_terms_at_zero": fitted.terms.intercept_,
            f"{kind}_hand": np.ascontiguousarray(fitted.hand.coef_.T),
            f"{kind}_hand_at_zero": fitted.hand.intercept_,
            f"{kind}_mix": mix,
        }
    folder.mkdir(parents=True, exist_ok=True)
    head = {"format": FORMAT, "digest": digest_of(arrays), "signs": json.dumps(sign_names())}
    save_file(arrays, folder / "router.safetensors", metadata=head)
    shared.steps.save(folder / "steps.safetensors")
    for size, trees in zip(SIZES, experts["choice"][0].trees, strict=True):
        trees.save(folder / f"choice_{size}.safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m router.learned.train", description="Train the learned classifier.")
    parser.add_argument("--data", type=Path, help="the folder described in this module's docstring")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--cross-fit", action="store_true", help="report instead of writing weights")
    parser.add_argument(
        "--latency",
        action="store_true",
        help="measure instead how long a prompt takes with what ships: the demonstration models' questions, and DIR's",
    )
    parser.add_argument("--json", type=Path, help="where --cross-fit and --latency write their figures too")
    arguments = parser.parse_args(argv)
    if arguments.data is None and not arguments.latency:
        parser.error("the following arguments are required: --data")
    kinds = {"choice": "mmlu", "problem": "gsm8k"} if arguments.data is not None else {}
    questions = {kind: read_questions(arguments.data / f"dev/{name}.jsonl.gz") for kind, name in kinds.items()}
    prompts = {kind: [question.prompt for question in some] for kind, some in questions.items()}
    if arguments.latency:
        from router.learned.report import report_latency

        report_latency(prompts, arguments.json)
        return 0
    sums = read_questions(arguments.data / "train/gsm8k_train_steps.jsonl.gz")
    shared = shared_parts([question for some in questions.values() for question in some], sums)
    rows = {kind: rows_of(kind, some, shared) for kind, some in questions.items()}
    if arguments.cross_fit:
        corpus = [*(prompt for some in prompts.values() for prompt in some), *(question.prompt for question in sums)]
        report_cross_fit(rows, shared, corpus, arguments.json)
        return 0
    save(arguments.out, shared, {kind: fit_expert(each) for kind, each in rows.items()})
    print(f"weights written to {arguments.out}", file=sys.stderr)
    return 0


def report_cross_fit(rows: dict[str, Rows], shared: Shared, corpus: Sequence[str], path: Path | None) -> None:
    from router.learned.report import report

    chances = {kind: cross_fitted(each) for kind, each in rows.items()}
    others = {kind: fit_expert(each) for other, each in rows.items() for kind in rows if kind != other}
    shipped = {kind: as_shipped(each, chances[kind], others[kind], shared, corpus) for kind, each in rows.items()}
    report({kind: (rows[kind], chances[kind], shipped[kind]) for kind in rows}, path)


if __name__ == "__main__":
    sys.exit(main())
