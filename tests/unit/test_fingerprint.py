from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import messages
from models.messages import ChatRequest, ImagePart, Message, Sampling, TextPart, Tool, ToolCall, ToolChoice
from router.fingerprint import MAX_SIMILAR_CHARS, circle_of, fingerprint, one_spelling, time_sensitive
from router.ports import CacheKey
from router.settings import ExactCacheSettings, IngressSettings

SETTINGS = IngressSettings()


def asked(text: str, **changes: object) -> ChatRequest:
    return replace(ChatRequest("auto", (Message("user", (TextPart(text),)),)), **changes)  # type: ignore[arg-type]


def key(request: ChatRequest, org: str = "acme", namespace: str = "", settings: IngressSettings = SETTINGS) -> CacheKey:
    found = fingerprint(request, org, namespace, settings)
    assert found is not None
    return found.key(settings)


texts = st.text(max_size=20)
parts = st.one_of(
    st.builds(TextPart, texts),
    st.builds(ImagePart, texts.map("data:{}".format), st.sampled_from(["auto", "low"])),
    st.builds(messages.ReasoningPart, texts, st.none() | texts),
)
turns = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.lists(parts, max_size=3).map(tuple),
    st.lists(st.builds(ToolCall, texts, texts, texts), max_size=2).map(tuple),
    st.none() | texts,
    st.none() | texts,
)
samplings = st.builds(
    Sampling,
    max_tokens=st.none() | st.integers(1, 100),
    temperature=st.none() | st.floats(0, 1),
    top_p=st.none() | st.floats(0, 1),
    seed=st.none() | st.integers(),
    stop=st.lists(texts, max_size=2).map(tuple),
    n=st.integers(1, 3),
    presence_penalty=st.none() | st.floats(-2, 2),
    frequency_penalty=st.none() | st.floats(-2, 2),
    top_logprobs=st.none() | st.integers(0, 5),
    top_k=st.none() | st.integers(1, 5),
    logit_bias=st.lists(st.tuples(st.integers(0, 9), st.floats(-100, 100)), max_size=2).map(tuple),
)
requests = st.builds(
    ChatRequest,
    model=texts,
    messages=st.lists(turns, max_size=4).map(tuple),
    sampling=samplings,
    tools=st.lists(st.builds(Tool, texts, texts, texts, st.none() | st.booleans()), max_size=2).map(tuple),
    tool_choice=st.none()
    | st.builds(ToolChoice, st.sampled_from(["auto", "none", "required", "tool"]), st.none() | texts),
    parallel_tool_calls=st.none() | st.booleans(),
    response_format=st.none()
    | st.builds(
        messages.ResponseFormat, st.sampled_from(["text", "json_object"]), texts, texts, description=st.none() | texts
    ),
    reasoning_effort=st.none() | texts,
    user=st.none() | texts,
    raw_prompt=st.booleans(),
    prefill=st.booleans(),
    verbosity=st.none() | st.sampled_from(["low", "high"]),
    prompt_cache_key=st.none() | texts,
    safety_identifier=st.none() | texts,
)
NO_PART = ("user", "prompt_cache_key", "safety_identifier")
"""Of the question: they change no answer."""
users = st.builds(Message, st.just("user"), st.lists(st.builds(TextPart, texts), min_size=1, max_size=2).map(tuple))


@given(requests, requests)
def test_only_the_same_request_has_the_same_exact_digest(a: ChatRequest, b: ChatRequest) -> None:
    none = dict.fromkeys(NO_PART)
    same = repr(replace(a, **none)) == repr(replace(b, **none))
    assert (key(a).exact == key(b).exact) == same


@given(requests, requests, st.sampled_from([field.name for field in fields(ChatRequest)]))
def test_any_changed_field_but_who_asks_changes_the_exact_digest(a: ChatRequest, b: ChatRequest, field: str) -> None:
    changed = replace(a, **{field: getattr(b, field)})
    if repr(changed) != repr(a):
        assert (key(changed).exact == key(a).exact) == (field in NO_PART)


@given(st.lists(turns, max_size=2), users, requests, st.sampled_from(["model", "sampling", "tools", "messages"]))
def test_any_change_before_the_last_turn_changes_the_scope(
    head: list[Message], last: Message, other: ChatRequest, field: str
) -> None:
    a = ChatRequest("m", (*head, last))
    changed = (*other.messages, last) if field == "messages" else getattr(other, field)
    b = replace(a, **{field: changed})
    if key(a).scope is not None and repr(a) != repr(b):
        assert key(a).scope != key(b).scope


@given(texts.filter(str.strip), texts.filter(str.strip))
def test_the_last_turns_text_is_not_in_the_scope(a: str, b: str) -> None:
    one, other = key(asked(a)), key(asked(b))
    if one.scope and other.scope:
        assert one.scope == other.scope
        assert (one.exact == other.exact) == (a == b)
        assert (one.text, other.text) == (a, b)


@given(requests, texts, texts, texts, texts)
def test_tenants_never_share(request: ChatRequest, org: str, namespace: str, org2: str, namespace2: str) -> None:
    a, b = key(request, org, namespace), key(request, org2, namespace2)
    if (org, namespace) == (org2, namespace2):
        assert a == b
    else:
        assert a.tenant != b.tenant and a.exact != b.exact
        assert a.scope is None or a.scope != b.scope


def test_text_cannot_move_between_fields() -> None:
    assert key(asked("x"), "a", "b/c").exact != key(asked("x"), "a/b", "c").exact
    two = (Message("user", (TextPart("a"),)), Message("user", (TextPart("b"),)))
    forged = "a'),), tool_calls=(), tool_call_id=None, name=None), Message(role='user', parts=(TextPart(text='b"
    assert key(asked("", messages=two)).exact != key(asked(forged)).exact


def test_a_new_field_of_the_request_counts_without_being_told() -> None:
    """The digests are of `repr`, so no field may hide from it."""
    for _, kind in inspect.getmembers(messages, is_dataclass):
        assert all(field.repr for field in fields(kind)), kind
        assert kind.__repr__ is not object.__repr__


@pytest.mark.parametrize(
    "request_",
    [
        asked("hi", tools=(Tool("f"),)),
        asked("hi", messages=(Message("assistant", tool_calls=(ToolCall("1", "f", "{}"),)), *asked("hi").messages)),
        asked("hi", messages=(Message("tool", (TextPart("1"),)), *asked("hi").messages)),
        asked("hi", messages=(Message("user", (ImagePart("data:,"),)), *asked("hi").messages)),
        asked("hi", messages=(Message("user", (TextPart("hi"), ImagePart("data:,"))),)),
        asked("hi", messages=(*asked("hi").messages, Message("assistant", (TextPart("Well,"),)))),
        asked("hi", messages=()),
        asked("hi", sampling=Sampling(n=2)),
        asked("hi", sampling=Sampling(seed=0)),
        asked("hi", sampling=Sampling(top_logprobs=0)),
        asked("hi", sampling=Sampling(temperature=0.71)),
        asked(""),
        asked(" \n"),
        asked("x" * (MAX_SIMILAR_CHARS + 1)),
        asked("What is the weather like today?"),
    ],
)
def test_these_are_answered_to_the_very_question_only(request_: ChatRequest) -> None:
    found = key(request_)
    assert found.scope is None and found.text == ""


def test_semantic_answers_can_be_switched_off() -> None:
    assert key(asked("hi")).scope
    assert key(asked("hi"), settings=IngressSettings(semantic_cache=False)).scope is None


def test_these_go_past_the_caches() -> None:
    assert fingerprint(asked("hi", sampling=Sampling(temperature=1.01)), "o", "", SETTINGS) is None
    strict = IngressSettings(exact_cache=ExactCacheSettings(max_temperature=0))
    assert fingerprint(asked("hi", sampling=Sampling(temperature=0.1)), "o", "", strict) is None
    assert fingerprint(asked("hi"), "o", "", strict) is not None
    for url in ("http://a.b/c.png", "HTTPS://a.b/c.png"):
        image = asked("", messages=(Message("user", (ImagePart(url),)),))
        assert fingerprint(image, "o", "", SETTINGS) is None


@pytest.mark.parametrize(
    "text",
    [
        "What is new today?",
        "who is the CURRENT president",
        "latest news on Mars",
        "What happened last week?",
        "Best films this past year",
        "What did he do three days ago?",
        "Was läuft heute im Kino?",
        "Best phones of 2031",
        "Predictions for 2032",
    ],
)
def test_time_sensitive(text: str) -> None:
    assert time_sensitive(text, year=2031)


@pytest.mark.parametrize("text", ["How do I know?", "What happened in 1998?", "Define knowledge.", "Boil an egg"])
def test_not_time_sensitive(text: str) -> None:
    assert not time_sensitive(text, year=2031)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("How are tyres made?", "  HOW  are tyres made\n"),
        ("How are tyres made?", "Hi! How are tyres made? Thanks!"),
        ("What is the latest news?", "what is the latest news"),
        ("long " * 2000, "LONG " * 2000),
    ],
)
def test_another_spelling_has_the_same_key_whatever_the_day_and_the_length(a: str, b: str) -> None:
    one, other = key(asked(a)), key(asked(b))
    assert one.surface == other.surface is not None and one.exact != other.exact
    assert one.surface != key(asked(b), org="other").surface
    assert one.surface != key(asked(b, model="m")).surface


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What is 5!", "What is 5"),
        ("Is C# hard?", "Is C hard?"),
        ("`A`", "`a`"),
        ("a:\n  b", "a:\n b"),
        ("Is it -5?", "Is it 5?"),
    ],
)
def test_where_marks_and_spaces_may_count_it_has_not(a: str, b: str) -> None:
    assert one_spelling(a) is None or one_spelling(a) != one_spelling(b)


def test_a_wish_is_a_part_of_the_question_and_a_circle_only_of_who_reads_along() -> None:
    plain, wished, confined = (
        fingerprint(asked("Hello, why is the sky blue?"), "acme", "", SETTINGS, *more)
        for more in ((), ("cheap",), ("", "circle"))
    )
    assert plain is not None and wished is not None and confined is not None
    first, other, third = plain.key(SETTINGS), wished.key(SETTINGS), confined.key(SETTINGS)
    assert first.exact != other.exact and first.scope != other.scope and first.surface != other.surface
    assert (first.exact, first.scope, first.surface) == (third.exact, third.scope, third.surface)
    assert first.flight != third.flight and third.flight == third.exact_only().flight
    assert circle_of(("a", "b")) == circle_of(("b", "a")) != circle_of(("ab",))
