"""A provider on loopback that streams in each dialect, and fails as the prompt asks it to.

`plan=429,good#7` in a prompt: the first request with the number 7 is answered with the fault `429`, all later ones
well. So one server and one adapter do for any number of cases at the same time. A new dialect is one more `Dialect`.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from models.anthropic import AnthropicModel
from models.base import ChatModel
from models.catalog import ModelEntry
from models.cohere import CohereModel
from models.gemini import ai_studio
from models.messages import Usage
from models.openai_compatible import OpenAICompatibleModel
from models.openai_responses import ResponsesModel

SECRET = "sk-secret-key"
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Dialect:
    """A provider's side of the wire: `head` brings the first event 'Hé', `tail` the rest of a good answer, which names
    the 2 tokens that it took `output_tokens`. `adapter` is made of entries, key and address."""

    name: str
    head: bytes
    tail: bytes
    malformed: bytes
    error_event: bytes
    overflow: str
    adapter: Callable[[Mapping[str, ModelEntry], str, str], ChatModel]
    output_tokens: bytes
    usage: Usage

    def model(self, url: str, key: str = SECRET) -> ChatModel:
        # Which engine an entry names is the builder's business.
        return self.adapter({"m": ModelEntry(name="m", engine="simulated", context_tokens=1024)}, key, url)

    def bad_usage(self, output: bytes) -> bytes:
        """A whole answer that says it took `output` tokens, which are no number or cannot be."""
        good, bad = (b'"%s":%s' % (self.output_tokens, number) for number in (b"2", output))
        assert good in self.tail
        return self.head + self.tail.replace(good, bad)


OPENAI = Dialect(
    "openai",
    head=(
        b': a comment\r\n\r\ndata: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\r\n\r\n'
        + 'data: {"choices":[{"index":0,"delta":{"content":"Hé"}}]}\n\n'.encode()
    ),
    tail=(
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,'
        b'"prompt_tokens_details":{"cached_tokens":4}}}\n\ndata: [DONE]\n\n'
    ),
    malformed=b'data: {"choices":[{"index":0,"del\n\n',
    error_event=b'data: {"error":{"message":"sk-secret-key","code":500}}\n\n',
    overflow='{"error":{"message":"%s","type":"invalid_request_error","code":"context_length_exceeded"}}',
    adapter=lambda entries, key, url: OpenAICompatibleModel(entries, f"{url}/v1", key),
    output_tokens=b"completion_tokens",
    usage=Usage(9, 2, cached_input_tokens=4),
)
ANTHROPIC = Dialect(
    "anthropic",
    head=(
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"1","type":"message","role":"assistant",'
        b'"content":[],"model":"m","usage":{"input_tokens":5,"cache_read_input_tokens":4,"output_tokens":1}}}\n\n'
        b"event: ping\ndata: {}\n\n"
        b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        b'"content_block":{"type":"text","text":""}}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        + '"delta":{"type":"text_delta","text":"Hé"}}\n\n'.encode()
    ),
    tail=(
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        b'"usage":{"output_tokens":2}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
    ),
    malformed=b'event: content_block_delta\ndata: {"type":"content_blo\n\n',
    error_event=(
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"sk-secret-key"}}\n\n'
    ),
    overflow='{"type":"error","error":{"type":"invalid_request_error",'
    '"message":"prompt is too long: 210000 tokens > 200000 maximum %s"}}',
    adapter=AnthropicModel,
    output_tokens=b"output_tokens",
    usage=Usage(9, 2, cached_input_tokens=4),
)
GEMINI = Dialect(
    "gemini",
    head='data: {"candidates":[{"content":{"role":"model","parts":[{"text":"Hé"}]}}]}\r\n\r\n'.encode(),
    tail=(
        b'data: {"candidates":[{"content":{"parts":[]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":9,'
        b'"cachedContentTokenCount":4,"candidatesTokenCount":2}}\r\n\r\n'
    ),
    malformed=b'data: {"candidates":[{"con\n\n',
    error_event=b'data: {"error":{"code":503,"status":"UNAVAILABLE","message":"sk-secret-key"}}\n\n',
    overflow='{"error":{"code":400,"status":"INVALID_ARGUMENT","message":"The input token count (30) exceeds the '
    'maximum number of tokens allowed (20). %s"}}',
    adapter=lambda entries, key, url: ai_studio(entries, key, f"{url}/v1beta"),
    output_tokens=b"candidatesTokenCount",
    usage=Usage(9, 2, cached_input_tokens=4),
)
COHERE = Dialect(
    "cohere",
    head=(
        b'event: message-start\ndata: {"type":"message-start","id":"1","delta":{"message":{"role":"assistant"}}}\n\n'
        b'data: {"type":"content-start","index":0,"delta":{"message":{"content":{"text":""}}}}\n\n'
        + 'data: {"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"Hé"}}}}\n\n'.encode()
    ),
    tail=(
        b'data: {"type":"content-end","index":0}\n\n'
        b'data: {"type":"message-end","delta":{"finish_reason":"COMPLETE",'
        b'"usage":{"billed_units":{"input_tokens":9,"output_tokens":2}}}}\n\n'
    ),
    malformed=b'data: {"type":"content-de\n\n',
    error_event=b'data: {"message":"sk-secret-key"}\n\n',
    overflow='{"message":"prompt is too long: 30 tokens, %s"}',
    adapter=lambda entries, key, url: CohereModel(entries, key, f"{url}/v2"),
    output_tokens=b"output_tokens",
    usage=Usage(9, 2),
)
RESPONSES = Dialect(
    "responses",
    head=(
        b'event: response.created\ndata: {"type":"response.created","response":{"status":"in_progress"}}\n\n'
        b'data: {"type":"response.output_item.added","output_index":0,"item":{"type":"message"}}\n\n'
        + 'data: {"type":"response.output_text.delta","output_index":0,"delta":"Hé","logprobs":[]}\n\n'.encode()
    ),
    tail=(
        b'data: {"type":"response.output_text.done","output_index":0}\n\n'
        b'data: {"type":"response.completed","response":{"status":"completed","usage":{"input_tokens":9,'
        b'"input_tokens_details":{"cached_tokens":4},"output_tokens":2}}}\n\n'
    ),
    malformed=b'data: {"type":"response.outp\n\n',
    error_event=b'data: {"type":"error","code":"server_error","message":"sk-secret-key"}\n\n',
    overflow='{"error":{"message":"%s","type":"invalid_request_error","code":"context_length_exceeded"}}',
    adapter=lambda entries, key, url: ResponsesModel(entries, key, f"{url}/v1"),
    output_tokens=b"output_tokens",
    usage=Usage(9, 2, cached_input_tokens=4),
)
DIALECTS = (OPENAI, RESPONSES, ANTHROPIC, GEMINI, COHERE)


# ---- what a provider may do ----------------------------------------------------------------------------------------


def answers(status: int, body: str = "", headers: str = "") -> Script:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = body.encode()
        writer.write(f"HTTP/1.1 {status} Status\r\ncontent-length: {len(data)}\r\n{headers}\r\n".encode() + data)
        await writer.drain()

    return script


def streams(*pieces: bytes, ends: bool = True, then_waits_for: asyncio.Event | None = None) -> Script:
    """Sends a chunked stream of `pieces`; without `ends` it hangs up in the middle of a chunk."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        if then_waits_for:
            await reader.read()  # until the model hangs up
            then_waits_for.set()
        writer.write(b"0\r\n\r\n" if ends else b"ff\r\ndata: {")
        await writer.drain()

    return script


async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Without a word, and with a reset instead of an end."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def stalls(*pieces: bytes) -> Script:
    return streams(*pieces, then_waits_for=asyncio.Event())


_WRONG = f'{{"error":{{"message":"{SECRET}"}}}}'
_FILTERED = (
    f'{{"error":{{"message":"{SECRET}","type":null,"param":"prompt","code":"content_filter","status":400,'
    '"innererror":{"code":"ResponsibleAIPolicyViolation"}}}'
)

FAULTS: dict[str, Callable[[Dialect], Script]] = {
    "good": lambda d: streams(d.head, d.tail),
    "hang_up": lambda _: hang_up,
    "400": lambda _: answers(400, _WRONG),
    "filtered": lambda _: answers(400, _FILTERED),
    "401": lambda _: answers(401, _WRONG),
    "404": lambda _: answers(404, _WRONG),
    "429": lambda _: answers(429, _WRONG),
    "429_soon": lambda _: answers(429, _WRONG, "retry-after-ms: 20\r\n"),
    "429_late": lambda _: answers(429, _WRONG, "retry-after: 30\r\n"),
    "500": lambda _: answers(500, _WRONG),
    "503": lambda _: answers(503, f"<html>{SECRET}</html>"),
    "529": lambda _: answers(529, _WRONG),
    "silence": lambda _: silence,
    "head_only": lambda _: stalls(),
    "cut_early": lambda _: streams(ends=False),
    "ended_early": lambda _: streams(),
    "malformed_early": lambda d: streams(d.malformed),
    "error_early": lambda d: streams(d.error_event),
    "stall": lambda d: stalls(d.head),
    "cut": lambda d: streams(d.head, ends=False),
    "ended": lambda d: streams(d.head),
    "malformed": lambda d: streams(d.head, d.malformed),
    "error": lambda d: streams(d.head, d.error_event),
    "usage_negative": lambda d: streams(d.bad_usage(b"-2")),
    "usage_huge": lambda d: streams(d.bad_usage(b"1" + b"0" * 15)),
    "usage_words": lambda d: streams(d.bad_usage(b'"two"')),
    "usage_null": lambda d: streams(d.bad_usage(b"null")),
}


# ---- the server ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(script: Script) -> AsyncIterator[str]:
    """The address of a server that reads each request and then does what `script` says."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await read_request(reader)
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the model hung up
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    return head, await reader.readexactly(int(lengths[0]) if lengths else 0)


@dataclass
class FaultServer:
    """`requests` by the number of the case, and `busy`: how many are being answered, in all."""

    dialect: Dialect
    url: str = ""
    requests: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    busy: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self.tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # the model hung up
            _, body = await read_request(reader)
            self.busy += 1
            try:
                await self._next(body)(reader, writer)
            finally:
                self.busy -= 1
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.tasks.discard(task)

    def _next(self, body: bytes) -> Script:
        asked = re.search(rb"plan=([a-z0-9_,]+)#(\d+)", body)
        assert asked, "a prompt without a plan"
        plan, number = asked[1].decode().split(","), int(asked[2])
        done = self.requests[number]
        self.requests[number] += 1
        return FAULTS[plan[min(done, len(plan) - 1)]](self.dialect)


@asynccontextmanager
async def fault_server(dialect: Dialect) -> AsyncIterator[FaultServer]:
    faults = FaultServer(dialect)
    server = await asyncio.start_server(faults.serve, "127.0.0.1", 0)
    faults.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield faults
    finally:
        server.close()
        if faults.tasks:
            await asyncio.wait(faults.tasks, timeout=1.0)
