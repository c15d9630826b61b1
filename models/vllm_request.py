"""Our request as the JSON body that vLLM's own server takes, so that vLLM renders and samples it as it would there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from models.messages import ChatRequest, Message, ReasoningPart, TextPart, Tool
from models.openai_turns import openai_turns
from models.tool_call_ids import MISTRALS, with_fitting_ids
from models.upstream import parse_json

_CALL_IDS = {"mistral": MISTRALS}
"""What the chat templates of models take whose calls are read by these parsers."""


def openai_request(
    request: ChatRequest, streamed: bool, tool_parser: str | None = None, cache_salt: str | None = None
) -> dict[str, Any]:
    """The answer's length is left out: it is set later. Raises `InvalidRequest` for a schema that is not JSON."""
    sampling = request.sampling
    messages = with_fitting_ids(request.messages, _CALL_IDS.get(tool_parser or ""))
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [_openai_message(message) for message in openai_turns(messages)],
        "stream": streamed,
        "n": sampling.n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias} or None,
        "response_format": _openai_response_format(request),
        "cache_salt": cache_salt,
    }
    if request.raw_prompt:
        body["add_special_tokens"] = True  # those that a chat template would have written
    if sampling.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    if request.tools:
        body["tools"] = [{"type": "function", "function": _openai_function(tool)} for tool in request.tools]
        body["tool_choice"] = _openai_tool_choice(request)
    return {key: value for key, value in body.items() if value is not None}


def _openai_message(message: Message) -> dict[str, Any]:
    texts = [part.text for part in message.parts if isinstance(part, TextPart)]
    thoughts = [part.text for part in message.parts if isinstance(part, ReasoningPart)]
    parts = [{"type": "text", "text": text} for text in texts]
    # Several parts stay apart: whether and how they are joined is the chat template's affair.
    shown: dict[str, Any] = {"role": message.role, "content": texts[0] if len(texts) == 1 else parts or ""}
    if thoughts:
        shown["reasoning"] = "".join(thoughts)
    if message.name:
        shown["name"] = message.name
    if message.tool_call_id:
        shown["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        shown["content"] = shown["content"] or None
        shown["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
            for call in message.tool_calls
        ]
    return shown


def _openai_function(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if parameters := parse_json(tool.parameters, "tools"):
        function["parameters"] = parameters
    return function


def _openai_tool_choice(request: ChatRequest) -> Any:
    choice = request.tool_choice
    if choice is None:
        return "auto"
    return {"type": "function", "function": {"name": choice.name}} if choice.mode == "tool" else choice.mode


def _openai_response_format(request: ChatRequest) -> dict[str, Any] | None:
    wanted = request.response_format
    if wanted is None or wanted.kind != "json_schema":
        return {"type": wanted.kind} if wanted else None
    schema = {
        "name": wanted.name or "answer",
        "schema": parse_json(wanted.schema or "{}", "response_format"),
        "strict": wanted.strict,
    }
    if wanted.description is not None:
        schema["description"] = wanted.description
    return {"type": "json_schema", "json_schema": schema}


def unbounded_request_class() -> Any:
    """vLLM's request without its length check, which says no more of a long prompt than that it is too long: it cuts
    the text before it counts. Whoever uses it checks the length."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    base: Any = ChatCompletionRequest

    class UnboundedRequest(base):  # type: ignore[misc]
        def build_tok_params(self, model_config: Any) -> Any:
            return replace(super().build_tok_params(model_config), max_total_tokens=None, max_output_tokens=0)

    return UnboundedRequest
