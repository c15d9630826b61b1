import pytest

from models.base import Call
from models.catalog import ModelEntry
from models.errors import (
    ContentRefused,
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    UnsupportedFeature,
    UpstreamFailed,
)
from models.messages import ChatRequest, Message, ResponseFormat, TextPart, Tool
from models.upstream import UpstreamCall, begin, begin_health_check, described_schema

ENTRIES = {
    name: ModelEntry(name=name, engine="openai_compatible", source=name, context_tokens=1024) for name in ("m", "other")
}
USER = Message("user", (TextPart("Hello"),))


async def test_a_call_begins_with_the_entry_that_the_request_names():
    entry, upstream = begin(ENTRIES, ChatRequest("other", (USER,)), Call("r"), False)
    assert entry is ENTRIES["other"]
    assert not upstream.started
    assert "'other'" in str(upstream.unreachable())


@pytest.mark.parametrize(
    ("request_", "is_closed", "expected", "says"),
    [
        (ChatRequest("unknown", (USER,)), False, ModelNotFound, "'unknown'"),
        (ChatRequest("m", (USER,), tools=(Tool("f", "", "{}"),)), False, UnsupportedFeature, "tools"),
        (ChatRequest("m", (USER,)), True, ModelUnavailable, "'m' is shut down"),
    ],
)
async def test_a_call_that_cannot_be_made_does_not_begin(request_, is_closed, expected, says):
    with pytest.raises(expected, match=says):
        begin(ENTRIES, request_, Call("r"), is_closed)


async def test_a_health_check_names_all_models_of_the_provider():
    assert "'m, other'" in str(begin_health_check(ENTRIES, False).unreachable())
    with pytest.raises(ModelUnavailable, match="'m, other' is shut down"):
        begin_health_check(ENTRIES, True)


@pytest.mark.parametrize(
    ("schema", "description", "expected"),
    [
        ('{"type": "object"}', "a place", {"description": "a place", "type": "object"}),
        ('{"type": "object"}', None, {"type": "object"}),
        ('{"description": "its own"}', "a place", {"description": "its own"}),
        ('{"$ref": "#/$defs/A", "$defs": {"A": {}}}', "a place", {"$ref": "#/$defs/A", "$defs": {"A": {}}}),
        (None, "a place", {"description": "a place"}),
    ],
)
def test_what_a_schema_is_for_stands_in_it_where_it_can(schema, description, expected):
    assert described_schema(ResponseFormat("json_schema", "n", schema, None, description)) == expected


AZURES = {"message": "sk-1", "code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, AZURES, ContentRefused),
        (400, AZURES | {"code": None}, ContentRefused),
        (400, AZURES | {"code": ["?"], "innererror": "?"}, InvalidRequest),
        (400, {"code": "content_policy_violation", "type": "invalid_request_error"}, ContentRefused),
        (400, {"type": "content_filter", "message": "rejected because it was considered high risk"}, ContentRefused),
        (
            400,
            {"type": "invalid_request_error", "message": "Output blocked by content filtering policy"},
            ContentRefused,
        ),
        (400, {"code": "invalid_request_error", "message": "Content Exists Risk"}, ContentRefused),
        (
            200,
            {"type": "invalid_request_error", "message": "Output blocked by content filtering policy"},
            ContentRefused,
        ),
        (500, {"code": "content_filter"}, ContentRefused),
        (500, {"code": "server_error"}, UpstreamFailed),
        (403, {"code": "content_filter"}, ModelUnavailable),
        (400, {"code": "invalid_request_error", "message": "what is a content filter?"}, InvalidRequest),
        (400, {"code": "context_length_exceeded", "type": "content_filter"}, ContextLengthExceeded),
    ],
)
async def test_a_content_filters_refusal_is_told_from_other_refusals(status, error, expected):
    refusal = UpstreamCall("m", 1.0).refused(status, {}, error)
    assert type(refusal) is expected
    assert "sk-1" not in refusal.message
    assert refusal.abandoned == (expected is ContentRefused)
