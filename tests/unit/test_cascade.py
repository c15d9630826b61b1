from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.messages import (
    ChatRequest,
    Event,
    Finish,
    FinishReason,
    Message,
    ReasoningDelta,
    ResponseFormat,
    Sampling,
    TextDelta,
    TextPart,
    TokenLogprob,
    Tool,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from router.cascade import Judgement, agreement, consistent, judge, refuses, without_logprobs
from router.json_form import NOTHING, begins_json, fits_schema, parsed
from router.settings import GateSettings

ASKED = ChatRequest("auto", (Message("user", (TextPart("?"),)),))
GATE = GateSettings(tokens=4, min_mean_logprob=-0.1)
FOUR_SURE = [-0.01] * 4


def token(logprob: float, text: str = "w ") -> TextDelta:
    return TextDelta(text, 1, (TokenLogprob(text, logprob),))


def tokens(*logprobs: float) -> list[Event]:
    return [token(logprob) for logprob in logprobs]


def verdict(
    events: list[Event], request: ChatRequest = ASKED, gate: GateSettings | None = GATE, filter_escalates: bool = False
) -> tuple[str, str]:
    judgement = judge(events, request, gate, filter_escalates)
    return judgement.verdict, judgement.reason


# ---- how sure the model is -----------------------------------------------------------------------------------------


def test_a_sure_answer_is_released_with_its_kth_token_and_not_before() -> None:
    assert [verdict(tokens(*FOUR_SURE[:n]))[0] for n in (1, 2, 3, 4)] == ["wait", "wait", "wait", "release"]
    assert judge(tokens(*FOUR_SURE), ASKED, GATE) == Judgement("release", "sure", 4, -0.01)


def test_an_unsure_answer_goes_on_as_soon_as_no_later_token_could_save_it() -> None:
    assert verdict(tokens(-0.39)) == ("wait", "early")
    assert verdict(tokens(-0.41)) == ("escalate", "unsure"), "three certain tokens make it -0.1025"
    assert verdict(tokens(-0.1, -0.1, -0.1, -0.11)) == ("escalate", "unsure")


def test_a_short_answer_is_judged_when_it_ends() -> None:
    assert verdict([*tokens(-0.05), Finish("stop")]) == ("release", "sure")
    assert verdict([*tokens(-0.15), Finish("stop")]) == ("escalate", "unsure")


def test_what_comes_after_the_kth_token_does_not_count() -> None:
    assert verdict([*tokens(*FOUR_SURE), *tokens(-9.0)]) == ("release", "sure")


def test_an_answer_may_have_to_be_of_low_entropy_too() -> None:
    def among(*chances: float) -> TextDelta:
        top = tuple(TokenLogprob(str(n), math.log(chance)) for n, chance in enumerate(chances))
        return TextDelta("w ", 1, (TokenLogprob("0", -0.01, top),))

    gate = GATE.model_copy(update={"max_mean_entropy": 0.5})
    certain, torn = among(0.999), among(0.5, 0.25)
    assert judge([torn, certain, certain, certain], ASKED, gate).mean_entropy == pytest.approx(0.2659, abs=1e-3)
    assert verdict([torn, certain, certain, certain], gate=gate) == ("release", "sure")
    assert verdict([torn], gate=gate) == ("wait", "early")
    assert verdict([torn, torn], gate=gate) == ("escalate", "unsure"), "two certain ones make it 0.52"
    assert verdict([torn, torn, certain, certain]) == ("release", "sure"), "where it is not asked for"
    assert verdict(tokens(*FOUR_SURE), gate=gate) == ("release", "sure"), "nor where the engine shows no others"


def test_a_model_without_logprobs_is_judged_by_the_form_alone_and_just_as_soon() -> None:
    plain: list[Event] = [TextDelta("w ", 1)] * 4
    assert verdict(plain[:3]) == ("wait", "early")
    assert verdict(plain) == ("release", "unjudged")
    assert verdict([TextDelta("sixteen letters.")]) == ("release", "unjudged"), "four characters a token if none says"


def test_the_first_of_several_answers_is_judged() -> None:
    two = replace(ASKED, sampling=Sampling(n=2))
    other: list[Event] = [replace(token(-9.0), choice=1)]
    assert verdict([*other, *tokens(*FOUR_SURE)], two) == ("release", "sure")
    assert verdict([*other, Finish("stop", 1), *tokens(-0.01)], two) == ("wait", "early")


def test_without_a_gate_the_first_piece_is_good_enough() -> None:
    assert verdict([UsageReport(Usage(1))], gate=None) == ("wait", "begun")
    assert verdict([TextDelta("")], gate=None) == ("wait", "begun")
    for piece in (TextDelta("a"), ReasoningDelta("a"), ToolCallDelta(0, "id", "look"), Finish("stop")):
        assert verdict([piece], gate=None) == ("release", "begun")


def test_the_gates_logprobs_are_not_given_out() -> None:
    events = [*tokens(-0.5), Finish("stop")]
    assert without_logprobs(events) == [TextDelta("w ", 1), Finish("stop")]


def test_samples_that_say_other_things_hold_an_answer_back() -> None:
    sure = judge(said("Bonn, of course.", "stop"), ASKED, GATE)
    events = said("Bonn, of course.", "stop")
    agreed = consistent(sure, events, ["bonn of COURSE", "Bonn, of course!"], GATE)
    assert (agreed.verdict, agreed.reason, agreed.agreement) == ("release", "sure", 1.0)
    apart = consistent(sure, events, ["Bonn", "Berlin"], GATE.model_copy(update={"min_agreement": 0.6}))
    assert (apart.verdict, apart.reason, apart.agreement) == ("escalate", "disagreement", 0.5)
    assert consistent(sure, events, [], GATE) == sure, "samples that failed have no say"
    assert agreement("", ["", "?!"]) == 1.0 and agreement("a b", ["b a c d"]) == 1.0
    assert agreement("1234", ["1235"]) == 0.0 and agreement("word", [""]) == 0.0


# ---- form ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, I can\u2019t",
        "Sorry, I cannot do that",
        "I cannot answer",
        "As an AI language model",
        "Unfortunately, I am unable to",
        "\"I won't do that",
    ],
)
def test_refusals(text: str) -> None:
    assert refuses(text)
    assert verdict([token(-0.01, text)]) == ("escalate", "refusal")
    assert verdict([token(-0.01, text)], gate=GATE.model_copy(update={"refusals": False})) == ("wait", "early")


@pytest.mark.parametrize(
    "text",
    ["", "I", "I don't know.", "I can tell you that", "Sorry is a word", "As an aircraft", "He said: I can't", "can't"],
)
def test_what_is_no_refusal(text: str) -> None:
    assert not refuses(text)


def test_an_empty_answer_is_none() -> None:
    assert verdict([TextDelta(" \n", 1), Finish("stop")]) == ("escalate", "empty")
    assert verdict([Finish("length")]) == ("escalate", "empty")


JSON = replace(ASKED, response_format=ResponseFormat("json_object"))
CITY = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
SCHEMA = replace(ASKED, response_format=ResponseFormat("json_schema", "place", CITY))


def said(text: str, finish: FinishReason | None = None) -> list[Event]:
    return [token(-0.01, text), *([Finish(finish)] if finish else [])]


def test_json_is_seen_not_to_be_json_at_its_first_token() -> None:
    assert verdict(said("Sure! {"), JSON) == ("escalate", "json")
    assert verdict(said('{"a"'), JSON) == ("wait", "early")
    assert verdict(said('{"a": 1', "stop"), JSON) == ("escalate", "json")
    assert verdict(said("[1]", "stop"), JSON) == ("escalate", "json")
    assert verdict(said('{"a": 1}', "stop"), JSON) == ("release", "sure")
    assert verdict(said('{"a": 1', "length"), JSON) == ("release", "sure"), "the caller's limit cut it, not the model"


def test_a_schema_is_held_against_the_whole_answer() -> None:
    assert verdict(said('{"town": "Bonn"}', "stop"), SCHEMA) == ("escalate", "schema")
    assert verdict(said('{"city": 3}', "stop"), SCHEMA) == ("escalate", "schema")
    assert verdict(said('{"city": "Bonn"}', "stop"), SCHEMA) == ("release", "sure")


def test_a_tool_call_names_a_tool_that_there_is_and_fits_its_parameters() -> None:
    asked = replace(ASKED, tools=(Tool("look", "", CITY),))
    begun: list[Event] = [ToolCallDelta(0, "1", "look", '{"ci')]
    assert verdict(begun, asked) == ("wait", "early")
    assert verdict([ToolCallDelta(0, "1", "listen", "")], asked) == ("escalate", "tool_call")
    assert verdict([ToolCallDelta(0, "1", "look", "Bonn")], asked) == ("escalate", "tool_call")
    assert verdict([*begun, Finish("tool_calls")], asked) == ("escalate", "tool_call")
    right: list[Event] = [*begun, ToolCallDelta(0, arguments='ty": "Bonn"}'), Finish("tool_calls")]
    assert verdict(right, asked) == ("release", "unjudged")
    wrong: list[Event] = [*begun, ToolCallDelta(0, arguments='ty": 1}'), Finish("tool_calls")]
    assert verdict(wrong, asked) == ("escalate", "tool_call")


def test_a_content_filter_goes_on_only_where_that_is_configured_and_nothing_was_said() -> None:
    filtered: list[Event] = [Finish("content_filter")]
    for gate in (GATE, None):
        assert verdict(filtered, gate=gate) == ("release", "content_filter")
        assert verdict(filtered, gate=gate, filter_escalates=True) == ("escalate", "content_filter")
    assert verdict([TextDelta("Bo"), *filtered], gate=None, filter_escalates=True) == ("release", "begun")


def test_schemas_are_compared_as_far_as_it_goes() -> None:
    deep = {"type": "array", "items": {"enum": ["a", 1]}}
    assert fits_schema(["a", 1], deep) and not fits_schema(["b"], deep)
    assert not fits_schema({"x": 1}, {"properties": {"y": {}}, "additionalProperties": False})
    assert fits_schema({"x": 1}, {"patternProperties": {"x": {}}, "additionalProperties": False})
    assert fits_schema(2.0, {"type": "integer"}) and not fits_schema(True, {"type": ["integer", "number"]})
    assert fits_schema(None, {"type": ["string", "null"]}) and not fits_schema(0, {"const": 1})
    assert fits_schema(3, {"pattern": "^x", "minimum": 9}), "what is not compared is taken as met"
    assert fits_schema(3, NOTHING) and not fits_schema(3, False)
    itself: dict[str, object] = {"type": "array"}
    itself["items"] = itself
    value: list[object] = []
    for _ in range(100):
        value = [value]
    assert fits_schema(value, itself)
    assert parsed("[" * 100_000) is NOTHING


@given(st.dictionaries(st.text(), st.integers() | st.text()), st.integers(0, 40))
def test_every_beginning_of_a_json_object_may_become_one(value: dict[str, object], cut: int) -> None:
    assert begins_json(json.dumps(value)[:cut])


# ---- properties ----------------------------------------------------------------------------------------------------

logprobs = st.lists(st.floats(-5, 0), max_size=12)
gates = st.builds(GateSettings, tokens=st.integers(1, 8), min_mean_logprob=st.floats(-3, 0), refusals=st.booleans())


@given(logprobs, gates, st.booleans())
def test_the_wait_ends_within_k_tokens_and_a_judgement_is_final(
    found: list[float], gate: GateSettings, ends: bool
) -> None:
    """However the stream is cut into batches, the verdict is that of the first k tokens."""
    events = [*tokens(*found), *([Finish("stop")] if ends else [])]
    verdicts = [judge(events[:n], ASKED, gate).verdict for n in range(1, len(events) + 1)]
    decided = [v for v in verdicts if v != "wait"]
    assert len(set(decided[: 1 + gate.tokens])) <= 1
    if len(found) >= gate.tokens or ends:
        assert decided
        assert verdicts[min(len(verdicts), gate.tokens) - 1] != "wait" or len(found) < gate.tokens
    first = found[: gate.tokens]
    if decided and first:
        mean = sum(first) / len(first)
        assume_apart = not math.isclose(mean, gate.min_mean_logprob, abs_tol=1e-9)
        if assume_apart and (len(found) >= gate.tokens or ends):
            assert decided[0] == ("release" if mean > gate.min_mean_logprob else "escalate")


@given(logprobs, gates)
def test_a_judgement_is_pure_and_a_laxer_gate_releases_no_less(found: list[float], gate: GateSettings) -> None:
    events: list[Event] = [*tokens(*found), Finish("stop")]
    assert judge(events, ASKED, gate) == judge(list(events), ASKED, gate)
    laxer = gate.model_copy(update={"min_mean_logprob": gate.min_mean_logprob - 0.5})
    if judge(events, ASKED, gate).verdict == "release":
        assert judge(events, ASKED, laxer).verdict == "release"
