"""An answer as OpenAI's responses write it: the items of its output, and the events in which they come.

Source: https://platform.openai.com/docs/api-reference/responses/object, /responses-streaming.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from deployments.openai.errors import openai_error
from deployments.openai.responses_items import REDACTED, SIGNATURE
from deployments.openai.responses_schema import ENCRYPTED, ParsedResponse
from models.errors import SwitchyardError
from models.messages import Completion, Event, ReasoningDelta, TextDelta, TokenLogprob, ToolCallDelta, Usage
from router.run import Head, Run

Keep = Callable[[dict[str, Any]], None]
"""Takes a finished response to where it is stored, without waiting for that."""

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class OpenAIResponses:
    """The dialect of one request. Text and thoughts close when something else begins. Calls close at the end, since
    providers may mix the pieces of several."""

    def __init__(self, parsed: ParsedResponse, keep: Keep | None) -> None:
        self._parsed, self._keep = parsed, keep
        self._created_s = int(time.time())
        self._sequence = 0
        self._out: list[str] | None = None
        self._response: dict[str, Any] = {}
        self._hex = ""
        self._items: list[dict[str, Any]] = []
        self._open: int | None = None  # of the items, the text or thought that is under way
        self._pieces: list[str] = []
        self._rows: list[TokenLogprob] = []
        self._calls: dict[int, tuple[int, list[str]]] = {}

    # ---- unary -----------------------------------------------------------------------------------------------------

    def unary(self, run: Run, head: Head, completion: Completion) -> bytes:
        self._begin(head)
        for event in run.events:
            self._take(event)
        return json.dumps(self._end(completion.finish_reason, completion.usage)).encode()

    # ---- stream ----------------------------------------------------------------------------------------------------

    def first(self, head: Head) -> bytes:
        self._out = []
        self._begin(head)
        for kind in ("response.created", "response.in_progress"):
            self._emit(kind, response=self._response)
        return self._sent()

    def chunk(self, events: Sequence[Event]) -> bytes:
        for event in events:
            self._take(event)
        return self._sent()

    def last(self, run: Run) -> bytes:
        response = self._end(run.folded.finish_reason, run.usage)
        self._emit(f"response.{response['status']}", response=response)
        return self._sent()

    def error(self, error: SwitchyardError, request_id: str) -> bytes:
        return openai_error(error, request_id)

    def error_event(self, error: SwitchyardError, request_id: str) -> bytes:
        told = {"code": "rate_limit_exceeded" if error.http_status == 429 else "server_error", "message": error.message}
        failed = {**self._response, "status": "failed", "error": told, "output": self._shown()}
        self._emit("response.failed", response=failed)
        return self._sent()

    # ---- the response ----------------------------------------------------------------------------------------------

    def _begin(self, head: Head) -> None:
        self._hex = head.request_id.removeprefix("req_")
        self._response = {
            "id": f"resp_{self._hex}",
            "object": "response",
            "created_at": self._created_s,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": head.model,
            "output": [],
            "usage": None,
            **self._parsed.echoed,
        }

    def _end(self, finish_reason: str | None, usage: Usage) -> dict[str, Any]:
        reason = _INCOMPLETE.get(finish_reason or "")
        status = "incomplete" if reason else "completed"
        self._close_open(status)
        for index in sorted(self._calls):
            self._close_call(index, status)
        response = self._response | {
            "status": status,
            "completed_at": None if reason else int(time.time()),
            "incomplete_details": {"reason": reason} if reason else None,
            "usage": usage_body(usage),
        }
        if self._keep is not None:
            self._keep(response | {"output": self._items})
        return response | {"output": self._shown()}

    def _shown(self) -> list[dict[str, Any]]:
        """The output as the caller gets it: the proofs of thoughts only if asked for."""
        if ENCRYPTED in (self._parsed.body.include or ()):
            return self._items
        return without_proofs(self._items)

    # ---- items -----------------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        match event:
            case TextDelta():
                self._text(event)
            case ReasoningDelta():
                self._thought(event)
            case ToolCallDelta():
                self._call(event)

    def _text(self, delta: TextDelta) -> None:
        rows = delta.logprobs if self._parsed.wants_logprobs else ()
        if not (delta.text or rows):
            return
        number = self._item_of("message", {"role": "assistant", "content": []}, "msg", _text_part("", ()))
        self._pieces.append(delta.text)
        self._rows += rows
        place = self._place(number) | {"content_index": 0, "delta": delta.text}
        self._emit("response.output_text.delta", **place, logprobs=_logprobs(rows))

    def _thought(self, delta: ReasoningDelta) -> None:
        number = self._item_of("reasoning", {"summary": [], "content": []}, "rs", _thought_part(""))
        if delta.text:
            self._pieces.append(delta.text)
            self._emit("response.reasoning_text.delta", **self._place(number), content_index=0, delta=delta.text)
        if delta.signature or delta.redacted:
            proof = SIGNATURE + delta.signature if delta.signature else f"{REDACTED}{delta.redacted}"
            self._items[number]["encrypted_content"] = proof
            self._close_open("completed")

    def _call(self, delta: ToolCallDelta) -> None:
        if delta.index not in self._calls:
            self._close_open("completed")
            call_id = delta.id or f"call_{self._hex}{delta.index:02x}"
            fields = {"call_id": call_id, "name": delta.name or "", "arguments": ""}
            self._calls[delta.index] = (self._add("function_call", fields, "fc"), [])
        number, pieces = self._calls[delta.index]
        if delta.arguments:
            pieces.append(delta.arguments)
            self._emit("response.function_call_arguments.delta", **self._place(number), delta=delta.arguments)

    def _item_of(self, kind: str, fields: dict[str, Any], prefix: str, part: dict[str, Any]) -> int:
        """The item of this kind that is under way, else a new one."""
        if self._open is not None and self._items[self._open]["type"] == kind:
            return self._open
        self._close_open("completed")
        self._open = number = self._add(kind, fields, prefix)
        self._emit("response.content_part.added", **self._place(number), content_index=0, part=part)
        return number

    def _add(self, kind: str, fields: dict[str, Any], prefix: str) -> int:
        number = len(self._items)
        item = {"id": f"{prefix}_{self._hex}{number:02x}", "type": kind, "status": "in_progress", **fields}
        self._items.append(item)
        self._emit("response.output_item.added", output_index=number, item=item)
        return number

    def _close_open(self, status: str) -> None:
        number, self._open = self._open, None
        if number is None:
            return
        item, text, rows = self._items[number], "".join(self._pieces), tuple(self._rows)
        self._pieces, self._rows = [], []
        place = self._place(number) | {"content_index": 0}
        if item["type"] == "message":
            part = _text_part(text, rows)
            self._emit("response.output_text.done", **place, text=text, logprobs=_logprobs(rows))
        else:
            part = _thought_part(text)
            self._emit("response.reasoning_text.done", **place, text=text)
        self._emit("response.content_part.done", **place, part=part)
        item |= {"status": status, "content": [part]}
        self._emit("response.output_item.done", output_index=number, item=without_proofs([item])[0])

    def _close_call(self, index: int, status: str) -> None:
        number, pieces = self._calls[index]
        item, arguments = self._items[number], "".join(pieces)
        item |= {"status": status, "arguments": arguments}
        place = self._place(number) | {"name": item["name"], "arguments": arguments}
        self._emit("response.function_call_arguments.done", **place)
        self._emit("response.output_item.done", output_index=number, item=item)

    def _place(self, number: int) -> dict[str, Any]:
        return {"item_id": self._items[number]["id"], "output_index": number}

    # ---- events ----------------------------------------------------------------------------------------------------

    def _emit(self, kind: str, **fields: Any) -> None:
        if self._out is None:  # the whole response is all that is asked for
            return
        event = json.dumps({"type": kind, "sequence_number": self._sequence, **fields})
        self._out.append(f"event: {kind}\ndata: {event}\n\n")
        self._sequence += 1

    def _sent(self) -> bytes:
        out, self._out = self._out or [], []
        return "".join(out).encode()


def without_proofs(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in item.items() if name != "encrypted_content"} for item in items]


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_5m_tokens + usage.cache_write_1h_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _text_part(text: str, rows: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": _logprobs(rows)}


def _thought_part(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def _logprobs(rows: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    return [_token(row) | {"top_logprobs": [_token(other) for other in row.top]} for row in rows]


def _token(row: TokenLogprob) -> dict[str, Any]:
    raw = row.raw if row.raw is not None else row.token.encode("utf-8", "surrogatepass")
    return {"token": row.token, "logprob": row.logprob, "bytes": list(raw)}
