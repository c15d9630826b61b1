"""Pieces of an answer that arrived together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.joining import joined
from models.messages import (
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    UsageReport,
    fold,
)

A, B = TokenLogprob("a", -0.1), TokenLogprob("b", -0.2)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        TextDelta, st.text(max_size=3), st.integers(0, 2), st.sampled_from([(), (A,), (A, B)]), st.integers(0, 1)
    ),
    st.builds(ReasoningDelta, st.text(max_size=3), st.sampled_from([None, "signed"]), st.integers(0, 1)),
    st.builds(
        ToolCallDelta,
        st.integers(0, 1),
        st.sampled_from([None, "call_1"]),
        st.sampled_from([None, "look_up"]),
        st.text(max_size=3),
        st.integers(0, 1),
    ),
    st.builds(Finish, st.just("stop"), st.integers(0, 1)),
    st.builds(UsageReport, st.builds(Usage, st.integers(0, 9))),
)


@given(st.lists(EVENTS, max_size=12))
def test_joined_events_say_the_same(events: list[Event]) -> None:
    found = list(joined(events))
    assert fold(found) == fold(events) and list(joined(found)) == found
    assert sum(e.tokens for e in found if isinstance(e, TextDelta)) == sum(
        e.tokens for e in events if isinstance(e, TextDelta)
    )


def test_neighbours_that_continue_each_other_are_one() -> None:
    text = [TextDelta("a", 1, (A,)), TextDelta("b", 1, (B,))]
    call = [
        ToolCallDelta(0, "call_1", "look_up", "{"),
        ToolCallDelta(0, arguments='"a"'),
        ToolCallDelta(0, arguments="}"),
    ]
    assert list(joined([*text, *call, Finish("tool_calls")])) == [
        TextDelta("ab", 2, (A, B)),
        call[0],
        ToolCallDelta(0, arguments='"a"}'),
        Finish("tool_calls"),
    ]


@pytest.mark.parametrize(
    "events",
    [
        [TextDelta("a"), TextDelta("b", choice=1)],
        [TextDelta("a"), ReasoningDelta("b")],
        [ReasoningDelta("a", signature="s"), ReasoningDelta("b")],
        [ReasoningDelta("a"), ReasoningDelta("", redacted="r")],
        [ToolCallDelta(0, arguments="{"), ToolCallDelta(1, arguments="{")],
        [ToolCallDelta(0, "call_1", "a"), ToolCallDelta(1, "call_2", "b")],
    ],
    ids=["choices", "kinds", "thoughts", "redacted", "calls", "new_calls"],
)
def test_what_does_not_continue_stays_apart(events: list[Event]) -> None:
    assert list(joined(events)) == events


def test_what_came_before_an_error_is_given_out_first() -> None:
    def broken() -> Iterator[Event]:
        yield TextDelta("a")
        yield TextDelta("b")
        raise ValueError("garbled")

    found = joined(broken())
    assert next(found) == TextDelta("ab")
    with pytest.raises(ValueError, match="garbled"):
        next(found)
