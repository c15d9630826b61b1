from __future__ import annotations

import random
from pathlib import Path

import pytest

from models.messages import Message, TextPart
from router.learned.fitting import Outcome, fit_head
from router.learned.heads import Head, load_head
from router.learned.strategy import terms_of

ADD = (
    *("What is {} plus {}?", "Add {} and {}.", "How much is {} plus {}?", "{} plus {} is?", "Sum {} and {}."),
    *("What is the sum of {} and {}?", "Please add {} to {}.", "Tell me {} plus {}.", "{} and {} add up to?"),
)
SPELL = (
    *('Spell "{}" backwards.', 'Write "{}" in reverse.', 'Reverse the word "{}".', 'What is "{}" backwards?'),
    *('Reverse "{}".', 'Please spell the word "{}" in reverse.', 'Turn "{}" around.', 'What is the reverse of "{}"?'),
)


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", (TextPart(text),)),)


def outcomes(count: int = 600, seed: int = 1) -> list[Outcome]:
    """Of a model that adds well and spells badly, long words worst."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        if number % 2:
            text, chance = draw.choice(ADD).format(draw.randint(1, 99), draw.randint(1, 99)), 0.95
        else:
            word = "".join(draw.choices("abcdefgh", k=draw.choice((3, 8))))
            text, chance = draw.choice(SPELL).format(word), 0.6 if len(word) == 3 else 0.05
        found.append(Outcome(user(text), float(draw.random() < chance)))
    return found


@pytest.fixture(scope="module")
def head() -> Head:
    return fit_head(outcomes())[0]


def chance(head: Head, text: str) -> float:
    found = head.chance(terms_of(user(text)))
    assert found is not None, text
    return found


def test_a_head_knows_what_its_model_answers_well_in_wordings_that_it_has_not_seen(head: Head) -> None:
    assert chance(head, "Please add 17 and 25.") > 0.85
    assert chance(head, 'Reverse "bdfhaceg".') < 0.2 < 0.4 < chance(head, 'Reverse "bdf".') < 0.8


def test_it_says_nothing_of_prompts_unlike_those_it_was_fitted_on(head: Head) -> None:
    for text in (
        "Who was the first emperor of Rome, and what became of his family?",
        "Prove that there are infinitely many primes.",
        "Spell out the consequences of the treaty for each of the signatories.",
        "Напиши слово наоборот.",
        "",
    ):
        assert head.chance(terms_of(user(text))) is None, text


def test_the_same_outcomes_give_the_same_numbers_and_what_is_read_is_what_was_written(
    tmp_path: Path, head: Head
) -> None:
    again, quality = fit_head(outcomes(), "mine")
    again.save(tmp_path / "more" / "again.safetensors")
    head.save(tmp_path / "head.safetensors")
    read = load_head(str(tmp_path / "more" / "again.safetensors"))
    assert read.version == load_head(str(tmp_path / "head.safetensors")).version != ""
    assert read.about == {"model": "mine", "outcomes": 600, "good": round(quality.good, 4)}
    assert chance(read, "Add 3 and 4.") == pytest.approx(chance(head, "Add 3 and 4."), abs=1e-3)


def test_it_says_how_good_it_is_of_other_wordings() -> None:
    _, quality = fit_head(outcomes())
    assert quality.outcomes == 600 and 0.9 < quality.auroc < 1 and quality.ece < 0.1 and quality.within > 0.9


def test_what_it_says_is_how_often_the_model_is_right(head: Head) -> None:
    """On outcomes of another seed."""
    other = [(chance(head, one.messages[0].text), one.good) for one in outcomes(400, seed=2)]
    for low, high in ((0.0, 0.3), (0.3, 0.8), (0.8, 1.0)):
        part = [(said, good) for said, good in other if low <= said < high]
        assert len(part) > 50
        assert sum(s for s, _ in part) / len(part) == pytest.approx(sum(g for _, g in part) / len(part), abs=0.1)


def test_outcomes_between_bad_and_good_count_as_a_part_of_both() -> None:
    half = [Outcome(each.messages, 0.5 if "plus" in each.messages[0].text else each.good) for each in outcomes()]
    assert chance(fit_head(half)[0], "What is 17 plus 25?") == pytest.approx(0.5, abs=0.1)


def test_what_was_asked_before_counts() -> None:
    """A follow-up is answered well after a sum and badly after a word."""
    before = [Outcome((*one.messages, *user("And once more?")), one.good) for one in outcomes()]
    head, _ = fit_head(before)
    after = {
        text: head.chance(terms_of((*user(text), *user("And once more?"))))
        for text in ("Add 1 and 2.", 'Reverse "bdfhaceg".')
    }
    assert after["Add 1 and 2."] > 0.7 > 0.3 > after['Reverse "bdfhaceg".']  # type: ignore[operator]


def test_too_few_outcomes_or_all_of_one_kind_or_prompt_are_refused() -> None:
    with pytest.raises(ValueError, match="150 outcomes"):
        fit_head(outcomes(150))
    with pytest.raises(ValueError, match="place the model"):
        fit_head([Outcome(one.messages, 1.0) for one in outcomes()])
    with pytest.raises(ValueError, match="give more prompts"):
        fit_head([Outcome(user("Add 1 and 2."), number % 2) for number in range(400)])


def test_one_wording_makes_a_head_too_which_knows_no_more_than_how_often_it_is_right() -> None:
    draw = random.Random(3)
    texts = [f"Look up {''.join(draw.choices('abcdefgh', k=6))} for me." for _ in range(301)]
    same = [Outcome(user(text), float(draw.random() < 0.3)) for text in texts[:300]]
    assert 0.15 < chance(fit_head(same)[0], texts[300]) < 0.45


def test_few_outcomes_can_begin_with_the_head_of_a_model_much_like_it(head: Head) -> None:
    few, _ = fit_head(outcomes(220, seed=7), start=head)
    assert chance(few, "Please add 17 and 25.") > 0.8 and chance(few, 'Reverse "bdfhaceg".') < 0.25
    assert few.about["started_from"]["outcomes"] == 600
