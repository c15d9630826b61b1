"""A question as Gemini's API takes it (https://ai.google.dev/api/generate-content#v1beta.GenerateContentRequest)."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

from models.catalog import ModelEntry
from models.errors import InvalidRequest, UnsupportedFeature
from models.messages import ChatRequest, ImagePart, Message, ReasoningPart, Sampling, TextPart, Tool, ToolCall
from models.upstream import described_schema, parse_json

SIGNATURE = "gemini:"
"""What a signature of Gemini's begins with in a conversation: no other provider gets it, and Gemini gets no other."""

# Gemini 3 and later refuse a call in the current turn that has no signature. This one says that the call comes from
# elsewhere, or that its signature was lost (a client of OpenAI's API has no place for it):
# https://ai.google.dev/gemini-api/docs/thought-signatures
_NO_SIGNATURE = "skip_thought_signature_validator"
# As Google's own OpenAI-compatible endpoint has them: https://ai.google.dev/gemini-api/docs/openai
_BUDGET_TOKENS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576}
_LEVEL = {"none": "low", "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"} | {
    "max": "high"
}


def encode(request: ChatRequest, entry: ModelEntry, call_ids: bool = True) -> dict[str, Any]:
    """The body of a `streamGenerateContent`. call_ids: whether calls of tools and their results have ids there.

    Raises `InvalidRequest` for JSON of the caller's that is none, and `UnsupportedFeature` for what the API cannot do.
    """
    if request.parallel_tool_calls is False:
        raise UnsupportedFeature(
            f"Model '{entry.name}' cannot be kept from calling several tools at once; leave out "
            "'parallel_tool_calls' or choose another model.",
            "parallel_tool_calls",
        )
    body: dict[str, Any] = {"contents": _contents(request.messages, entry, call_ids)}
    if system := "\n\n".join(m.text for m in request.messages if m.role in ("system", "developer") and m.text):
        body["systemInstruction"] = {"parts": [{"text": system}]}
    if config := _config(request, entry):
        body["generationConfig"] = config
    if request.tools:
        body["tools"] = [{"functionDeclarations": [_tool(tool) for tool in request.tools]}]
    if choice := request.tool_choice:
        mode = {"auto": "AUTO", "none": "NONE"}.get(choice.mode, "ANY")
        named = {"allowedFunctionNames": [choice.name]} if choice.mode == "tool" else {}
        body["toolConfig"] = {"functionCallingConfig": {"mode": mode, **named}}
    return body


def _config(request: ChatRequest, entry: ModelEntry) -> dict[str, Any]:
    config = _sampling(request.sampling)
    if thinking := _thinking(request, entry):
        config["thinkingConfig"] = thinking
    wanted = request.response_format
    if wanted and wanted.kind != "text":
        config["responseMimeType"] = "application/json"
        if wanted.kind == "json_schema":
            config["responseJsonSchema"] = described_schema(wanted)
    return config


def _sampling(sampling: Sampling) -> dict[str, Any]:
    named = {
        "maxOutputTokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "topP": sampling.top_p,
        "topK": sampling.top_k,
        "seed": sampling.seed,
        "stopSequences": list(sampling.stop) or None,
        "presencePenalty": sampling.presence_penalty,
        "frequencyPenalty": sampling.frequency_penalty,
    }
    return {name: value for name, value in named.items() if value is not None}


def _thinking(request: ChatRequest, entry: ModelEntry) -> dict[str, Any]:
    """Gemini 2 counts tokens, later ones have levels, the lowest of which is as near to none as they come."""
    mode = request.thinking.mode if request.thinking else "default"
    shown = request.thinking is None or request.thinking.display != "omitted"
    effort = request.reasoning_effort or ("none" if mode == "off" else None)
    if effort is None:
        return {"includeThoughts": True} if mode == "adaptive" and shown else {}
    if effort not in _LEVEL:
        raise InvalidRequest(f"reasoning_effort must be one of {', '.join(_LEVEL)}.", "reasoning_effort")
    is_gemini_2 = _source(entry).startswith("gemini-2")
    how_much = {"thinkingBudget": _BUDGET_TOKENS[effort]} if is_gemini_2 else {"thinkingLevel": _LEVEL[effort]}
    return {**how_much, "includeThoughts": effort != "none" and shown}


def _source(entry: ModelEntry) -> str:
    return entry.source or entry.name


def _tool(tool: Tool) -> dict[str, Any]:
    declaration: dict[str, Any] = {"name": tool.name}
    if tool.description:
        declaration["description"] = tool.description
    if parameters := parse_json(tool.parameters or "{}", "tools"):
        declaration["parametersJsonSchema"] = parameters
    return declaration


def _contents(messages: tuple[Message, ...], entry: ModelEntry, call_ids: bool) -> list[dict[str, Any]]:
    """User and model in turn. Results of tools are the user's, and name the tool that was called."""
    names: dict[str, str] = {}
    contents: list[dict[str, Any]] = []
    for message in messages if call_ids else _in_order_of_calls(messages):
        if message.role in ("system", "developer"):
            continue
        role = "model" if message.role == "assistant" else "user"
        names |= {call.id: call.name for call in message.tool_calls}  # an id may come again in a later turn
        if message.role == "tool":
            parts = list(_result(message, names))
        else:
            parts = list(_parts(message, needs_signature=not _source(entry).startswith("gemini-2")))
        if not call_ids:
            for part in parts:
                (part.get("functionCall") or part.get("functionResponse") or {}).pop("id", None)
        if not parts:
            continue
        if not contents or contents[-1]["role"] != role:
            contents.append({"role": role, "parts": []})
        contents[-1]["parts"] += parts
    return contents


def _in_order_of_calls(messages: tuple[Message, ...]) -> list[Message]:
    """Results that follow one another, in the order in which the tools were called: it is all that pairs them."""
    place: dict[str | None, int] = {}
    ordered: list[Message] = []
    for is_result, group in groupby(messages, lambda message: message.role == "tool"):
        some = list(group)
        if is_result:
            some.sort(key=lambda message: place.get(message.tool_call_id, len(place)))
        else:  # an id may come again in a later turn
            calls = [call.id for message in some for call in message.tool_calls]
            place = {identifier: number for number, identifier in enumerate(calls)} if calls else place
        ordered += some
    return ordered


def _result(message: Message, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """`output` and `error` are the words that the API has for how it went."""
    identifier = message.tool_call_id or ""
    response = {"error" if message.is_error else "output": message.text}
    yield {"functionResponse": {"id": identifier, "name": names.get(identifier, identifier), "response": response}}
    yield from (_image(part) for part in message.parts if isinstance(part, ImagePart))


def _parts(message: Message, needs_signature: bool) -> Iterator[dict[str, Any]]:
    """What Gemini signed belongs to the first call of its turn, or to the end of its text."""
    signatures = [
        part.signature.removeprefix(SIGNATURE)
        for part in message.parts
        if isinstance(part, ReasoningPart) and part.signature and part.signature.startswith(SIGNATURE)
    ]
    parts: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, TextPart) and part.text:
            parts.append({"text": part.text})
        elif isinstance(part, ImagePart):
            parts.append(_image(part))
    if signatures and parts and not message.tool_calls:
        parts[-1]["thoughtSignature"] = signatures[-1]
    yield from parts
    for index, call in enumerate(message.tool_calls):
        signed = signatures[index : index + 1] or ([_NO_SIGNATURE] if needs_signature and index == 0 else [])
        yield {"functionCall": _call(call), **({"thoughtSignature": signed[0]} if signed else {})}


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = parse_json(call.arguments or "{}", "messages")
    if not isinstance(arguments, dict):
        raise InvalidRequest("The arguments of a tool call are not a JSON object; correct them.", "messages")
    return {"id": call.id, "name": call.name, "args": arguments}


def _image(part: ImagePart) -> dict[str, Any]:
    if not part.url.startswith("data:"):
        mime_type = mimetypes.guess_type(urlsplit(part.url).path)[0] or "image/jpeg"
        return {"fileData": {"mimeType": mime_type, "fileUri": part.url}}
    head, _, data = part.url.removeprefix("data:").partition(",")
    mime_type, _, encoding = head.rpartition(";")
    if encoding != "base64" or not data:
        raise InvalidRequest(
            "An image's data URI must be base64, as in 'data:image/png;base64,...'; correct it.", "messages"
        )
    return {"inlineData": {"mimeType": mime_type, "data": data}}
