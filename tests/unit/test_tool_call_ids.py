"""A conversation that went on elsewhere: ids that another provider made, as the next one takes them."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import anthropic_request, gemini_request
from models.anthropic_request import to_json
from models.catalog import ModelEntry
from models.messages import ChatRequest, Message, TextPart, ToolCall
from models.openai_compatible import encode
from models.providers import PROVIDERS, Quirks, known_provider
from models.tool_call_ids import MISTRALS, fitting, with_fitting_ids
from models.vllm_request import openai_request
from router.topology import CloudEndpoint

ENTRY = ModelEntry(name="m", engine="openai_compatible", context_tokens=1024)
MADE_BY_OTHERS = [
    "call_PTLP8xhu3uwZk4l3nlnrrJha",  # OpenAI
    "toolu_01NGSZ6A8jPBzZr8prgLzR7P",  # Anthropic
    "functions.write_todos:0",  # Kimi
    "chatcmpl-tool-5b1bd4a3e2c54c9e8a5f0c7d2a9e1f33",  # vLLM
    "call_65OReGAIB0M4612fiyF6YMbI|fc_0feebbbc39e113d4016969ff3539208191914ede46e71d5d06",
    "D681PevKs",  # Mistral
    "",
]
TAKEN = {provider.name: provider.quirks.tool_call_ids for provider in PROVIDERS if provider.quirks.tool_call_ids}
ids = st.sampled_from(MADE_BY_OTHERS) | st.text(max_size=80)


def conversation(*identifiers: str) -> ChatRequest:
    """Calls with these ids in one turn, and their results, the last one first."""
    calls = tuple(ToolCall(each, f"f{number}", '{"n" : 1}') for number, each in enumerate(identifiers))
    results = [
        Message("tool", (TextPart(f"result {number}"),), tool_call_id=each) for number, each in enumerate(identifiers)
    ]
    return ChatRequest("m", (Message("user", (TextPart("hi"),)), Message("assistant", (), calls), *results[::-1]))


def sent_to(provider: str, request: ChatRequest) -> list[dict[str, Any]]:
    known = known_provider(provider)
    assert known is not None
    messages: list[dict[str, Any]] = json.loads(json.dumps(encode(request, ENTRY, known.quirks)))["messages"]
    return messages


def test_an_id_stands_for_itself_as_long_as_it_is_taken_and_for_the_same_one_always() -> None:
    assert fitting("D681PevKs", MISTRALS) == "D681PevKs"
    assert (
        with_fitting_ids(conversation("anything: at all").messages, None) == conversation("anything: at all").messages
    )
    assert fitting("call_1", MISTRALS) == "rGJ3PDHDM", "providers' caches and stored conversations rely on it"


@given(st.sampled_from(sorted(TAKEN)), st.lists(ids, min_size=1, max_size=6, unique=True))
def test_every_provider_gets_ids_that_it_takes_and_that_still_pair(provider: str, identifiers: list[str]) -> None:
    messages = sent_to(provider, conversation(*identifiers))
    calls = [call["id"] for call in messages[1]["tool_calls"]]
    assert all(TAKEN[provider].fullmatch(each) for each in calls)
    assert len(set(calls)) == len(identifiers)
    assert {m["tool_call_id"]: m["content"] for m in messages[2:]} == {
        identifier: f"result {number}" for number, identifier in enumerate(calls)
    }
    assert all(call["function"]["arguments"] == '{"n" : 1}' for call in messages[1]["tool_calls"])


@pytest.mark.parametrize(
    ("provider", "kept"),
    [
        ("mistral", ["D681PevKs"]),
        ("openai", [*MADE_BY_OTHERS[:3], "D681PevKs"]),
        ("openrouter", [*MADE_BY_OTHERS[:2], "D681PevKs"]),
        ("groq", MADE_BY_OTHERS),
    ],
)
def test_only_what_a_provider_refuses_is_exchanged(provider: str, kept: list[str]) -> None:
    calls = sent_to(provider, conversation(*MADE_BY_OTHERS))[1]["tool_calls"]
    assert [call["id"] for call in calls if call["id"] in MADE_BY_OTHERS] == kept


@given(st.lists(ids, min_size=1, max_size=6, unique=True))
def test_anthropics_api_too(identifiers: list[str]) -> None:
    body = json.loads(to_json(anthropic_request.encode(conversation(*identifiers), ENTRY)))
    calls = [block["id"] for block in body["messages"][1]["content"]]
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", each) for each in calls)
    assert [block["tool_use_id"] for block in body["messages"][2]["content"]] == calls[::-1]
    assert len(set(calls)) == len(identifiers)


def test_where_calls_have_no_ids_their_results_come_in_their_order() -> None:
    request = conversation("a", "b", "c")
    _, called, results = gemini_request.encode(request, ENTRY, call_ids=False)["contents"]
    assert '"id"' not in json.dumps([called, results])
    assert [part["functionResponse"]["response"]["output"] for part in results["parts"]] == [
        *("result 0", "result 1", "result 2")
    ]
    assert [part["functionResponse"]["name"] for part in results["parts"]] == ["f0", "f1", "f2"]
    _, called, results = gemini_request.encode(request, ENTRY)["contents"]
    assert [part["functionResponse"]["id"] for part in results["parts"]] == ["c", "b", "a"]


def test_an_endpoint_of_ones_own_says_what_it_takes() -> None:
    line = {
        "name": "ours",
        "dialect": "openai",
        "base_url": "http://127.0.0.1:1/v1",
        "api_key_env": None,
        "models": [{"name": "m", "context_tokens": 1024}],
        "quirks": {"tool_call_ids": "[a-zA-Z0-9]{9}"},
    }
    quirks = CloudEndpoint.model_validate(line).quirks
    assert isinstance(quirks, Quirks) and pickle.loads(pickle.dumps(quirks)) == quirks, "on its way to its deployment"
    call = encode(conversation("call_1"), ENTRY, quirks)["messages"][1]["tool_calls"][0]
    assert call["id"] == fitting("call_1", MISTRALS) != "call_1"


def test_mistrals_own_models_have_a_chat_template_that_is_particular() -> None:
    _, called, *results = openai_request(conversation("call_1", "D681PevKs"), True, "mistral")["messages"]
    assert [call["id"] for call in called["tool_calls"]] == [fitting("call_1", MISTRALS), "D681PevKs"]
    assert [result["tool_call_id"] for result in results] == ["D681PevKs", fitting("call_1", MISTRALS)]
    _, called, *_ = openai_request(conversation("call_1"), True, "hermes")["messages"]
    assert called["tool_calls"][0]["id"] == "call_1"
