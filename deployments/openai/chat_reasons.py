"""Why a part of a chat body is refused that OpenAI's API has, and what to do instead."""

from __future__ import annotations

from pydantic import ValidationError

from deployments.openai.body import path_of
from models.errors import UnsupportedFeature

REASONS: dict[str, str] = {
    "functions": "'functions' is the old form of 'tools'; send each function as a tool of type 'function'.",
    "function_call": "'function_call' is the old form of 'tool_choice'; send that.",
    "messages.function_call": "'function_call' is the old form of 'tool_calls'; send that.",
    "messages.role": (
        "A message is of 'system', 'developer', 'user', 'assistant' or 'tool'; the result of a function goes as 'tool' "
        "with its 'tool_call_id'."
    ),
    "messages.content.type": (
        "A part of a message is 'text' or 'image_url', or an assistant's 'refusal'. No model here takes audio, video "
        "or files: send what they say as text."
    ),
    "messages.tool_calls.type": "Only calls of functions are supported; send the call as one of type 'function'.",
    "messages.audio": "Audio is not supported; send its transcript as the message's 'content'.",
    "tools.type": (
        "Only tools of type 'function' are supported; describe a custom tool as a function with one string parameter."
    ),
    "tool_choice.type": (
        "'tool_choice' is 'auto', 'none', 'required' or one function; to allow fewer tools, send only those in 'tools'."
    ),
    "modalities": "Answers are text; leave 'modalities' out or send [\"text\"].",
    "audio": "Answers are text; leave 'audio' out.",
    "prediction": "'prediction' is not passed on to any model; leave it out, the answer is the same.",
    "web_search_options": (
        "No model here searches the web by itself; leave 'web_search_options' out, or give the model a tool that "
        "searches and answer its calls."
    ),
    "store": "Chat completions are not kept to be fetched later; leave 'store' out or send false.",
    "stream_options.include_obfuscation": "Streams are not padded; leave 'include_obfuscation' out or send false.",
    "service_tier": (
        "A provider's own tiers cannot be chosen; leave 'service_tier' out. How urgent a request is says "
        "'priority' in the 'switchyard' object."
    ),
}
"""By path, without the places in lists."""

_REFUSALS = ("none_required", "extra_forbidden", "literal_error")


def reason(error: ValidationError) -> UnsupportedFeature | None:
    """The error for the first part of a body that is known and not supported; None where something else is wrong."""
    for found in error.errors(include_url=False, include_context=False, include_input=False):
        where = path_of(found["loc"])
        path = ".".join(part for part in where if isinstance(part, str))
        if found["type"] in _REFUSALS and path in REASONS:
            return UnsupportedFeature(REASONS[path], ".".join(map(str, where)))
    return None
