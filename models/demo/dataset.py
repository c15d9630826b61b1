"""All kinds in one stream for training, and held-out sets of a fixed size."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from models.demo import arithmetic, facts, follow_ups, snippets, strings, talk
from models.demo.items import DIFFICULTIES, Difficulty, Item, Make, Split

DATA_VERSION = 2  # raise it with any change that changes an item
MAKERS: dict[Difficulty, tuple[Make, ...]] = {
    "easy": (*facts.EASY, *talk.EASY, *arithmetic.EASY),
    "medium": (
        facts.is_capital,
        *talk.MEDIUM,
        *arithmetic.MEDIUM,
        *strings.MEDIUM,
        *follow_ups.MEDIUM,
        *snippets.MEDIUM,
    ),
    "hard": (*arithmetic.HARD, *strings.HARD, *follow_ups.HARD, *snippets.HARD),
}
Mixture = dict[Difficulty, float]
Emphasis = dict[str, float]  # by the maker's name; 1 for those that are not named
EVEN: Mixture = {"easy": 1, "medium": 1, "hard": 1}
_SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer in one line.",
    "Answer briefly.",
    "Be brief and correct.",
    "You are a demonstration model.",
)
_WITH_SYSTEM = 0.06  # share of the conversations that begin with a system message


def items(
    random: Random, split: Split, mixture: Mixture | None = None, emphasis: Emphasis | None = None
) -> Iterator[Item]:
    """An endless stream: first the difficulty, then one of its kinds, all alike where `emphasis` says nothing else."""
    shares = mixture or EVEN
    weights = [shares[difficulty] for difficulty in DIFFICULTIES]
    named = emphasis or {}
    kinds = {name: [named.get(maker_name(make), 1.0) for make in makers] for name, makers in MAKERS.items()}
    while True:
        (difficulty,) = random.choices(DIFFICULTIES, weights)
        makers = MAKERS[difficulty]
        (make,) = random.choices(makers, kinds[difficulty]) if named else (random.choice(makers),)
        yield _item(random, split, make)


def maker_name(make: Make) -> str:
    """A function's name, or the kind of a relation."""
    return str(getattr(make, "__name__", None) or getattr(make, "kind", ""))


def training_items(
    seed: int, step: int, count: int, mixture: Mixture | None = None, emphasis: Emphasis | None = None
) -> list[Item]:
    """The batch of one training step. It hangs on nothing but its arguments."""
    stream = items(Random(f"demo:{DATA_VERSION}:train:{seed}:{step}"), "train", mixture, emphasis)
    return [next(stream) for _ in range(count)]


def held_out_items(seed: int, per_difficulty: int) -> list[Item]:
    """The same number of each difficulty, every kind alike, no conversation twice."""
    return balanced_items("held_out", seed, per_difficulty)


def balanced_items(split: Split, seed: int, per_difficulty: int) -> list[Item]:
    """As `held_out_items`, of either split. Raises ValueError where a kind has not so many different ones."""
    random = Random(f"demo:{DATA_VERSION}:{split}:{seed}")
    chosen: list[Item] = []
    seen: set[str] = set()
    for difficulty in DIFFICULTIES:
        makers = MAKERS[difficulty]
        count = tried = 0
        while count < per_difficulty:
            item = _item(random, split, makers[count % len(makers)])
            tried += 1
            if tried > 100 * per_difficulty:
                raise ValueError(f"there are not {per_difficulty} different {difficulty} questions, every kind alike")
            if str(item.messages) not in seen:
                seen.add(str(item.messages))
                chosen.append(item)
                count += 1
    return chosen


def _item(random: Random, split: Split, make: Make) -> Item:
    item = make(random, split)
    if random.random() >= _WITH_SYSTEM:
        return item
    system = {"role": "system", "content": random.choice(_SYSTEM)}
    return Item(item.kind, item.difficulty, (system, *item.messages), item.answer, item.grader)
