# ruff: noqa: RUF001 (punctuation of other scripts is part of what is tested)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.messages import Message, TextPart
from router.features import read
from router.policy import tier_of
from router.ports import Assessment
from router.settings import ClassifierSettings, RoutingSettings
from router.strategies import STRATEGIES, ComplexityStrategy
from router.vocabulary import CODE_WORDS, HARD_WORDS, TASK_OF_WORD, TASKS

DEBUG = """Debug this and explain step by step why it deadlocks, then refactor it to be thread-safe and add unit tests.
```python
class Pool:
    def run(self, f):
        with self.lock:
            return self.run_inner(f)
    def run_inner(self, f):
        with self.lock:
            return f()
```
1. Find the root cause.
2. Propose a fix.
3. Prove that it cannot deadlock any more."""
PROOF = (
    "Prove that for every prime p > 3, p^2 - 1 is divisible by 24. Then derive a generalisation, justify each step "
    "rigorously and give a counterexample where the hypothesis fails. State each lemma with its own proof."
)
DESIGN = (
    "Design a distributed rate limiter for an API in several regions. Compare token bucket and sliding window, analyse "
    "the trade-offs in consistency and latency, estimate the memory, and write the Go code of the core algorithm with "
    "tests. Explain in detail how it behaves in a network partition."
)


def user(text: str) -> Message:
    return Message("user", (TextPart(text),))


def assess(*messages: Message, domain: str | None = None, **settings: object) -> Assessment:
    return ComplexityStrategy(ClassifierSettings.model_validate(settings)).assess(messages, domain)


def tier(*messages: Message) -> str:
    return tier_of(assess(*messages).score, RoutingSettings())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hi",
        "thanks a lot!",
        "What is the capital of France?",
        "Summarise this paragraph",
        "Translate to French: Good morning, how are you?",
        "Extract all e-mail addresses: ann@example.org, bob@example.org",
        "你好",
        "法国的首都是哪里？",
        "Wie spät ist es?",
    ],
)
def test_easy_prompts_are_for_a_small_model(text: str) -> None:
    assert tier(user(text)) == "small"


@pytest.mark.parametrize(
    "text",
    [
        DEBUG,
        PROOF,
        DESIGN,
        "请证明：对任意素数 p > 3，p^2 - 1 能被 24 整除。请逐步推导并分析每一步，然后设计一个算法验证该结论，"
        "并比较其时间复杂度。请给出 Python 代码实现和优化方案。",
        "このコードをデバッグして、なぜ遅いのか段階的に分析してください。\n"
        "```python\nfor i in range(n):\n    x = a[i]\n"
        "```\nアルゴリズムを最適化して実装し、計算量を証明してください。",
    ],
)
def test_hard_prompts_are_for_a_large_model(text: str) -> None:
    assert tier(user(text)) == "large"


@pytest.mark.parametrize(
    "text",
    [
        "Write a Python function that reverses a string.",
        "Beweise, dass es unendlich viele Primzahlen gibt, und vergleiche drei Beweise Schritt für Schritt.",
        "Summarise this paragraph: " + "The committee met on Tuesday to talk about the new park. " * 60,
    ],
)
def test_the_middle_is_for_a_medium_model(text: str) -> None:
    assert tier(user(text)) == "medium"


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("good morning", "chat"),
        ("When does the shop open?", "question"),
        ("Summarise the algorithm below.", "summarisation"),
        ("Translate the function's comments to German.", "translation"),
        ("Extract every name", "extraction"),
        ("Write a poem about autumn", "creative"),
        ("Debug my Python script", "code"),
        ("Why do ships float?", "reasoning"),
        ("How many apples are left?", "math"),
        (r"\int_0^1 x^2 dx", "math"),
        ("请把这段话翻译成英文", "translation"),
        ("Объясни это", "reasoning"),
    ],
)
def test_tasks(text: str, task: str) -> None:
    assert assess(user(text)).task == task


def test_the_task_may_stand_in_the_instructions() -> None:
    instructions = Message("system", (TextPart("You translate what the user writes into French."),))
    assert assess(instructions, user("Good morning")).task == "translation"


def test_long_instructions_do_not_make_small_talk_hard() -> None:
    assert tier(Message("system", (TextPart(DESIGN * 20),)), user("hi")) == "small"


def test_a_short_follow_up_stays_above_small_talk_and_below_the_question() -> None:
    answer = Message("assistant", (TextPart("It locks twice."),))
    follow_up = assess(user(DEBUG), answer, user("and now?")).score
    assert assess(user("and now?")).score < follow_up < assess(user(DEBUG)).score


def test_the_score_is_the_weighted_sum_of_the_factors() -> None:
    assessed = assess(user(PROOF))
    weights = {"length": 0.30, "keywords": 0.30, "code": 0.25, "task": 0.15}
    assert assessed.factors.keys() == weights.keys()
    assert assessed.score == pytest.approx(sum(weights[name] * value for name, value in assessed.factors.items()))


def test_weights_are_settings() -> None:
    only_task = dict(length_weight=0, keyword_weight=0, code_weight=0, task_weight=1)
    assert assess(user("Prove it"), **only_task).score == TASKS["math"]


def test_keywords_are_settings_per_domain() -> None:
    keywords = {"law": ("Estoppel", "res judicata", "过失")}
    for text in ("Is this estoppel?", "Is it res judicata here?", "这是过失吗"):
        plain = assess(user(text), keywords=keywords)
        lawyer = assess(user(text), domain="law", keywords=keywords)
        assert lawyer.factors["keywords"] > plain.factors["keywords"] == 0
    assert assess(user("the estoppels"), domain="law", keywords=keywords).factors["keywords"] == 0
    assert assess(user("Is this estoppel?"), domain="unheard-of", keywords=keywords).factors["keywords"] == 0


def test_the_version_names_the_settings() -> None:
    default, other = ClassifierSettings(), ClassifierSettings(keywords={"law": ("estoppel",)})
    assert ComplexityStrategy(default).version == ComplexityStrategy(ClassifierSettings()).version
    assert ComplexityStrategy(default).version != ComplexityStrategy(other).version


def test_every_word_of_the_vocabulary_can_be_found() -> None:
    assert {word for word in HARD_WORDS | CODE_WORDS | TASK_OF_WORD.keys() if word not in read(word).words} == set()


def test_the_registry_names_what_it_builds() -> None:
    for name, build in STRATEGIES.items():
        assert build(ClassifierSettings()).name == name


@given(st.lists(st.text(max_size=300), max_size=5), st.sampled_from([None, "law"]))
def test_any_conversation_has_a_score_and_the_same_one_again(texts: list[str], domain: str | None) -> None:
    messages = [user(text) for text in texts]
    assessed = assess(*messages, domain=domain)
    assert 0 <= assessed.score <= 1
    assert all(0 <= value <= 1 for value in assessed.factors.values())
    assert assessed.task in TASKS
    assert assess(*messages, domain=domain) == assessed


@given(st.text(max_size=200), st.text(max_size=200))
def test_earlier_turns_never_lower_the_score_of_a_turn_with_a_task_of_its_own(earlier: str, last: str) -> None:
    last = "Explain: " + last
    alone = assess(user(last))
    after = assess(user(earlier), user(last))
    assert after.score >= alone.score - 1e-9 or after.task != alone.task
