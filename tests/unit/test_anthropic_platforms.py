"""Claude on Vertex AI and on Bedrock: the SDK's own clients, against a server on loopback."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import Any

import google.auth
import google.auth.exceptions
import pytest
from google.oauth2.credentials import Credentials

from models.anthropic import AnthropicModel
from models.anthropic_platforms import platform_client
from models.base import Call, Capabilities
from models.catalog import ModelEntry
from models.errors import ModelUnavailable
from models.messages import ChatRequest, Finish, Message, Sampling, TextDelta, TextPart, Usage, UsageReport
from tests.unit.replay import Replay, replayed

ENTRY = ModelEntry(
    name="c", engine="anthropic", source="claude-haiku-5-5", context_tokens=1000, capabilities=Capabilities()
)
ASKED = ChatRequest("c", (Message("user", (TextPart("hi"),)),), Sampling(max_tokens=5))
MESSAGE = (
    {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-haiku-5-5",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": 1},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
)
EVENTS = [
    TextDelta("Hello"),
    UsageReport(Usage(10, 1), estimated=True),  # should the answer break off
    Finish("stop"),
    UsageReport(Usage(10, 5)),
]
SSE = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in MESSAGE).encode()
VERTEX = {"GOOGLE_CLOUD_PROJECT": "my-project", "GOOGLE_CLOUD_LOCATION": "europe-west1"}


async def answer(model: AnthropicModel) -> list[Any]:
    return [event async for event in model.stream(ASKED, Call("r1", timeout_s=10))]


async def test_vertex_gets_the_model_in_its_address_and_a_token(monkeypatch):
    monkeypatch.setattr(google.auth, "default", lambda **_: (Credentials("token-1"), "another-project"))
    monkeypatch.setattr(Credentials, "refresh", lambda self, request: None)
    async with replayed(SSE[:40], SSE[40:]) as google_cloud:
        model = AnthropicModel({"c": ENTRY}, None, platform=platform_client("vertex", VERTEX, None, google_cloud.url))
        await model.check_health()
        assert await answer(model) == EVENTS
        await model.close()
    (sent,) = google_cloud.requests
    path = "/projects/my-project/locations/europe-west1/publishers/anthropic/models/claude-haiku-5-5:streamRawPredict"
    assert sent.line == f"POST {path} HTTP/1.1"
    assert sent.headers["authorization"] == "Bearer token-1"
    assert "model" not in sent.json and sent.json["messages"][0]["role"] == "user"


async def test_without_googles_credentials_the_model_is_unavailable(monkeypatch):
    def none(**_: Any) -> Any:
        raise google.auth.exceptions.DefaultCredentialsError("Your default credentials were not found.")

    monkeypatch.setattr(google.auth, "default", none)
    model = AnthropicModel({"c": ENTRY}, None, platform=platform_client("vertex", VERTEX, None, "http://127.0.0.1:9"))
    with pytest.raises(ModelUnavailable, match="credentials are missing"):
        await answer(model)
    await model.close()


def frame(event: dict[str, Any]) -> bytes:
    """An event as AWS frames it: https://smithy.io/2.0/aws/amazon-eventstream.html."""
    payload = json.dumps({"bytes": base64.b64encode(json.dumps(event).encode()).decode()}).encode()
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in (
            (":event-type", "chunk"),
            (":content-type", "application/json"),
            (":message-type", "event"),
        )
    )
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack(">I", zlib.crc32(message))


@pytest.mark.parametrize("key", ["bearer-1", None])
async def test_bedrock_reads_awss_frames_with_a_key_or_signed(key, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    body = b"".join(map(frame, MESSAGE))
    told = {"content-type": "application/vnd.amazon.eventstream"}
    aws: Replay
    async with replayed(body[:50], body[50:300], body[300:], headers=told) as aws:
        client = platform_client("bedrock", {"AWS_REGION": "us-east-1"}, key, aws.url)
        model = AnthropicModel({"c": ENTRY}, None, platform=client)
        assert await answer(model) == EVENTS
        await model.close()
    assert aws.requests[0].line == "POST /model/claude-haiku-5-5/invoke-with-response-stream HTTP/1.1"
    shown = aws.requests[0].headers["authorization"]
    assert shown == "Bearer bearer-1" if key else shown.startswith("AWS4-HMAC-SHA256 Credential=AKID/")
