import pytest

from models.base import Call
from models.catalog import ModelEntry
from models.errors import ModelNotFound, ModelUnavailable, UnsupportedFeature
from models.messages import ChatRequest, Message, ResponseFormat, TextPart, Tool
from models.upstream import begin, begin_health_check, described_schema

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
