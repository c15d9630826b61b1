"""What any question must fulfil, whichever door it came through. A door's own schema says more."""

from __future__ import annotations

from models.errors import InvalidRequest, PermissionDenied
from models.messages import ChatRequest, ImagePart, ReasoningPart, ToolChoice
from router.events import Principal

MAX_OUTPUT_TOKENS = 1_000_000
MAX_STOPS = 16
MAX_CHOICES = 16


def check_request(request: ChatRequest) -> None:
    """Raises `InvalidRequest` naming the field."""
    sampling = request.sampling
    if not request.messages:
        raise InvalidRequest("'messages' is empty; say something.", "messages")
    if sampling.max_tokens is not None and not 1 <= sampling.max_tokens <= MAX_OUTPUT_TOKENS:
        raise InvalidRequest(f"'max_tokens' must be between 1 and {MAX_OUTPUT_TOKENS}.", "max_tokens")
    if not 1 <= sampling.n <= MAX_CHOICES:
        raise InvalidRequest(f"'n' must be between 1 and {MAX_CHOICES}.", "n")
    if len(sampling.stop) > MAX_STOPS or not all(sampling.stop):
        raise InvalidRequest(f"'stop' takes up to {MAX_STOPS} strings, none of them empty.", "stop")
    if request.tool_choice not in (None, ToolChoice("none"), ToolChoice("auto")) and not request.tools:
        raise InvalidRequest("'tool_choice' asks for a tool, but 'tools' names none.", "tool_choice")
    names = [tool.name for tool in request.tools]
    if request.tool_choice and request.tool_choice.mode == "tool" and request.tool_choice.name not in names:
        raise InvalidRequest("'tool_choice' names a tool that is not in 'tools'.", "tool_choice")
    if len(set(names)) < len(names):
        raise InvalidRequest("Two tools have the same name; give one of them another.", "tools")
    for index, message in enumerate(request.messages):
        if message.role == "tool" and not message.tool_call_id:
            raise InvalidRequest("A 'tool' message needs 'tool_call_id'.", f"messages.{index}.tool_call_id")
        if message.role != "tool" and message.tool_call_id:
            raise InvalidRequest("Only a 'tool' message has a 'tool_call_id'.", f"messages.{index}.tool_call_id")
        if not message.parts and not message.tool_calls:
            raise InvalidRequest(f"'messages.{index}.content' is empty; say something.", f"messages.{index}.content")
        _check_text(message.text, f"messages.{index}.content")
        _check_text(
            "".join(part.text for part in message.parts if isinstance(part, ReasoningPart)), f"messages.{index}"
        )
        for call in message.tool_calls:
            _check_text(call.id + call.name + call.arguments, f"messages.{index}.tool_calls")
    if wanted := request.response_format:
        _check_text((wanted.schema or "") + (wanted.description or ""), "response_format")
    for index, tool in enumerate(request.tools):
        _check_text(tool.name + tool.description + tool.parameters, f"tools.{index}")


def check_priority(priority: int, principal: Principal) -> None:
    """Going before everybody else is the operator's to allow. Raises `PermissionDenied`."""
    if priority < 0 and "admin" not in principal.scopes:
        raise PermissionDenied("A priority below 0 needs a key with the scope 'admin'; leave it out.", "priority")


def size_chars(request: ChatRequest) -> int:
    """How long a question is, for the bound on what one caller may send."""
    texts = [m.text for m in request.messages] + [c.arguments for m in request.messages for c in m.tool_calls]
    images = [part.url for m in request.messages for part in m.parts if isinstance(part, ImagePart)]
    return sum(map(len, [*texts, *images, *(tool.parameters for tool in request.tools)]))


def _check_text(text: str, where: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"'{where}' has half a surrogate pair, which is no text; repair it.", where) from None
