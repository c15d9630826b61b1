import pickle

import pytest

from models.messages import (
    ChatRequest,
    Choice,
    Completion,
    Finish,
    ImagePart,
    Message,
    ReasoningDelta,
    ReasoningPart,
    Sampling,
    TextDelta,
    TextPart,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageReport,
    fold,
)


def test_text_is_the_text_parts_as_they_are():
    parts = (ReasoningPart("hm"), TextPart("a "), ImagePart("https://x/y.png"), TextPart("b"))
    assert Message("user", parts).text == "a b"
    assert Message("assistant").text == ""


def test_images_anywhere_in_the_conversation_count():
    image = Message("user", (ImagePart("https://x/y.png"),))
    assert ChatRequest("m", (image, Message("user", (TextPart("and now?"),)))).has_images
    assert not ChatRequest("m", (Message("user", (TextPart("hello"),)),)).has_images


def test_usage_adds_kind_by_kind():
    assert Usage(1, 2, 3, 4, 5, 6) + Usage(10, 20, 30, 40, 50, 60) == Usage(11, 22, 33, 44, 55, 66)


def test_fold_joins_an_answer():
    logprob = TokenLogprob("Hel", -0.1, (TokenLogprob("Hel", -0.1), TokenLogprob("Hi", -2.0)))
    events = [
        ReasoningDelta("let me "),
        ReasoningDelta("see", signature="s"),
        TextDelta("Hel", 1, (logprob,)),
        TextDelta("lo", 1),
        Finish("stop"),
        UsageReport(Usage(3, 2)),
    ]
    expected = Completion((Choice("Hello", "let me see", (), "stop", (logprob,)),), Usage(3, 2), False)
    assert fold(events) == expected


def test_fold_keeps_interleaved_tool_calls_apart_byte_for_byte():
    events = [
        ToolCallDelta(1, "b", "two"),
        ToolCallDelta(0, "a", "one", '{"x":'),
        ToolCallDelta(1, arguments=' {"y" : 1e2'),
        ToolCallDelta(0, arguments=" 1.0}"),
        ToolCallDelta(1, arguments="} "),
        Finish("tool_calls"),
    ]
    calls = (ToolCall("a", "one", '{"x": 1.0}'), ToolCall("b", "two", ' {"y" : 1e2} '))
    assert fold(events).tool_calls == calls


def test_fold_keeps_choices_apart_and_in_order():
    events = [
        TextDelta("b", choice=1),
        TextDelta("a"),
        ToolCallDelta(0, "x", "f", "{", choice=2),
        ReasoningDelta("hm", choice=1),
        ToolCallDelta(0, arguments="}", choice=2),
        Finish("length", 1),
        Finish("tool_calls", 2),
        Finish("stop"),
        UsageReport(Usage(3, 9)),
    ]
    answer = fold(events)
    assert answer.choices == (
        Choice("a", finish_reason="stop"),
        Choice("b", "hm", finish_reason="length"),
        Choice(tool_calls=(ToolCall("x", "f", "{}"),), finish_reason="tool_calls"),
    )
    assert (answer.text, answer.finish_reason, answer.usage) == ("a", "length", Usage(3, 9))


@pytest.mark.parametrize(
    ("reasons", "whole"),
    [
        (("stop", "stop"), "stop"),
        (("stop", "tool_calls"), "tool_calls"),
        (("content_filter", "length"), "content_filter"),
        (("stop", None), None),
    ],
)
def test_an_answer_is_as_complete_as_its_least_complete_choice(reasons, whole):
    assert Completion(tuple(Choice("x", finish_reason=reason) for reason in reasons)).finish_reason == whole


def test_nothing_folds_to_an_empty_answer_that_has_not_ended():
    assert fold([]) == Completion((Choice(),))


def test_a_stream_that_was_cut_has_no_finish_and_an_estimate():
    cut = fold([TextDelta("Hel")])
    assert (cut.finish_reason, cut.estimated, cut.usage) == (None, True, Usage())


def test_the_last_usage_report_holds():
    events = [UsageReport(Usage(1, 1)), UsageReport(Usage(1, 5), estimated=True)]
    assert (fold(events).usage, fold(events).estimated) == (Usage(1, 5), True)


def test_requests_hash_compare_and_survive_a_hop():
    request = ChatRequest("m", (Message("user", (TextPart("hé"),)),), Sampling(stop=("a",)))
    again = pickle.loads(pickle.dumps(request))
    assert again == request and hash(again) == hash(request)
    with pytest.raises(AttributeError):
        again.model = "other"
