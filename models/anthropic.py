"""Anthropic's Messages API through the official SDK (https://platform.claude.com/docs/en/api/messages).

The only file that imports `anthropic` (and `httpx2`, the transport that the SDK lets errors through from).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from models.anthropic_platforms import no_credentials
from models.anthropic_request import count_body, encode, headers, to_json
from models.base import Call, Capabilities
from models.catalog import ModelEntry
from models.errors import DeadlineExceeded
from models.messages import (
    ChatRequest,
    Event,
    Finish,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from models.upstream import CONNECT_TIMEOUT_S, UpstreamCall, begin, begin_health_check

if TYPE_CHECKING:
    from anthropic import AsyncStream
    from anthropic.types import RawMessageStreamEvent

    from models.anthropic_platforms import PlatformClient

_BASE_URL = "https://api.anthropic.com"
_DIALECT = Capabilities(
    tools=True,
    images=True,
    json_schema=True,
    reasoning=True,
    seed=False,
    top_k=True,
    thinking_budget=True,
    prefill=True,
)
_FINISH: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class AnthropicModel:
    """A `ChatModel` for all the models behind one key, or of a server that speaks alike (`base_url`, without `/v1`).

    What the Messages API lacks (n, seed, logprobs, penalties, JSON without a schema) is refused, even where an entry
    claims it.

    platform: the SDK's client for Bedrock or Vertex AI, which then has the key and the address.
    """

    def __init__(
        self,
        entries: Mapping[str, ModelEntry],
        api_key: str | None,
        base_url: str | None = None,
        platform: PlatformClient | None = None,
    ) -> None:
        import anthropic

        self._entries = {name: entry.within(_DIALECT) for name, entry in entries.items()}
        # Key and address are always given, else the SDK looks for them in the environment and in the home folder.
        self._on_platform = platform is not None
        self._client = platform or anthropic.AsyncAnthropic(
            api_key=api_key or "none",
            base_url=base_url or _BASE_URL,
            timeout=anthropic.Timeout(None, connect=CONNECT_TIMEOUT_S),
            max_retries=0,
            open_telemetry=False,
        )

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        entry, upstream = begin(self._entries, request, call, self._client.is_closed())
        body = to_json(encode(request, entry))
        with _translated(upstream):
            stream = await upstream.wait(self._send(body, headers(request)))
            answer = _Answer()
            try:
                events = aiter(stream)
                while (raw := await upstream.wait(anext(events, None))) is not None:
                    for event in answer.read(raw):
                        first, upstream.started = not upstream.started, True
                        yield event
                        if first:  # what the prompt took, should the answer break off
                            yield UsageReport(answer.usage, estimated=True)
                if answer.finish is None:
                    raise upstream.broken("ended its answer before it was finished")
            finally:
                await stream.close()
            yield Finish(answer.finish, stop=answer.stop)
            yield UsageReport(answer.usage)

    def _send(self, body: bytes, extra: dict[str, str]) -> Awaitable[AsyncStream[RawMessageStreamEvent]]:
        """As `client.messages.create` does, but with the body as it is: what the conversation's tool calls were given
        stays byte for byte the same. Not on a platform, whose client writes the body anew."""
        from anthropic import AsyncStream
        from anthropic.types import Message, RawMessageStreamEvent

        return self._client.post(
            "/v1/messages",
            cast_to=Message,
            **self._sent(body),
            options={"headers": extra},
            stream=True,
            stream_cls=AsyncStream[RawMessageStreamEvent],
        )

    def _sent(self, body: bytes) -> dict[str, Any]:
        return {"body": json.loads(body)} if self._on_platform else {"content": body}

    async def count_tokens(self, request: ChatRequest, call: Call) -> int:
        """How long the provider finds the question. It charges nothing for that."""
        from anthropic.types import MessageTokensCount

        entry, upstream = begin(self._entries, request, call, self._client.is_closed())
        body = to_json(count_body(request, entry))
        extra = {name: value for name, value in headers(request).items() if name == "anthropic-beta"}
        with _translated(upstream):
            asked = self._client.post(
                "/v1/messages/count_tokens",
                cast_to=MessageTokensCount,
                options={"headers": extra},
                **self._sent(body),
            )
            counted: MessageTokensCount = await upstream.wait(asked)
            return counted.input_tokens

    async def check_health(self) -> None:
        """Lists the provider's models, which costs nothing; an endpoint without that list is healthy if it answers.
        A platform has nothing that it may be asked for free."""
        import anthropic

        upstream = begin_health_check(self._entries, self._client.is_closed())
        if not isinstance(self._client, anthropic.AsyncAnthropic):
            return
        try:
            await upstream.wait(self._client.models.list(limit=1))
        except anthropic.APIStatusError as error:
            if error.status_code in (401, 402, 403):
                raise upstream.refused(error.status_code, {}, None) from None
            if error.status_code >= 500:
                raise upstream.unreachable() from None
        except (anthropic.AnthropicError, DeadlineExceeded):
            raise upstream.unreachable() from None

    async def close(self) -> None:
        await self._client.close()


@contextmanager
def _translated(upstream: UpstreamCall) -> Iterator[None]:
    """The SDK's errors as ours. Their texts hold what the provider wrote, so they are left behind."""
    import anthropic
    import httpx2

    try:
        yield
    except anthropic.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        raise upstream.refused(error.status_code, error.response.headers, body.get("error")) from None
    except (anthropic.APIConnectionError, anthropic.CredentialsError) as error:
        # The SDK does not tell a refused connection from one that broke before the answer.
        raise upstream.unreachable() from error
    except (anthropic.AnthropicError, httpx2.HTTPError, httpx2.StreamError) as error:
        raise upstream.broken("broke off") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise upstream.broken("sent something other than a message stream") from error
    except Exception as error:
        if refusal := no_credentials(error):
            raise refusal from error
        raise


# ---- the answer ----------------------------------------------------------------------------------------------------


class _Answer:
    """Reads the SDK's raw events of one answer. `finish` is None until the message has stopped, `stop` is the sequence
    that it stopped at."""

    def __init__(self) -> None:
        self.finish: FinishReason | None = None
        self.stop: str | None = None
        self.usage = Usage()
        self._reason: FinishReason = "stop"
        self._calls = 0
        self._arguments_seen = False
        self._block_type = ""

    def read(self, raw: Any) -> list[Event]:
        match raw.type:
            case "message_start":
                self._count(raw.message.usage)
            case "content_block_start":
                return self._start(raw.content_block)
            case "content_block_delta":
                return self._delta(raw.delta)
            case "content_block_stop" if self._block_type == "tool_use" and not self._arguments_seen:
                return [ToolCallDelta(self._calls - 1, arguments="{}")]
            case "message_delta":
                self._reason = _FINISH.get(raw.delta.stop_reason or "end_turn", "stop")
                self.stop = raw.delta.stop_sequence
                self._count(raw.usage)
            case "message_stop":
                self.finish = self._reason
        return []

    def _start(self, block: Any) -> list[Event]:
        self._block_type = block.type
        match block.type:
            case "text" if block.text:
                return [TextDelta(block.text)]
            case "thinking" if block.thinking:
                return [ReasoningDelta(block.thinking)]
            case "redacted_thinking":
                return [ReasoningDelta("", redacted=block.data)]
            case "tool_use":
                arguments = json.dumps(block.input, ensure_ascii=False) if block.input else ""
                self._arguments_seen = bool(arguments)
                self._calls += 1
                return [ToolCallDelta(self._calls - 1, block.id, block.name, arguments)]
        return []

    def _delta(self, delta: Any) -> list[Event]:
        match delta.type:
            case "text_delta":
                return [TextDelta(delta.text)]
            case "thinking_delta":
                return [ReasoningDelta(delta.thinking)]
            case "signature_delta":
                return [ReasoningDelta("", delta.signature)]
            case "input_json_delta" if delta.partial_json:
                self._arguments_seen = True
                return [ToolCallDelta(self._calls - 1, arguments=delta.partial_json)]
        return []

    def _count(self, usage: Any) -> None:
        """The API's input leaves out what the cache read and wrote, ours does not. A later count replaces an earlier
        one in what it names."""
        now = self.usage
        read = _either(usage.cache_read_input_tokens, now.cached_input_tokens)
        written_1h = now.cache_write_1h_tokens
        # Only the first count has the split by lifetime; the default lifetime is five minutes.
        if split := getattr(usage, "cache_creation", None):
            written_1h = split.ephemeral_1h_input_tokens
        written_before = now.cache_write_5m_tokens + now.cache_write_1h_tokens
        written = _either(usage.cache_creation_input_tokens, written_before)
        fresh = _either(usage.input_tokens, now.input_tokens - now.cached_input_tokens - written_before)
        details = getattr(usage, "output_tokens_details", None)
        self.usage = Usage(
            input_tokens=fresh + read + written,
            output_tokens=usage.output_tokens,
            cached_input_tokens=read,
            cache_write_5m_tokens=written - written_1h,
            cache_write_1h_tokens=written_1h,
            reasoning_tokens=details.thinking_tokens if details else now.reasoning_tokens,
        )


def _either(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value
