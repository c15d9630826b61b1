"""What a prompt takes, where no provider has said: for attempts that were given up."""

from __future__ import annotations

from models.messages import ChatRequest, Event, ImagePart, ReasoningDelta, TextDelta, ToolCallDelta, Usage, UsageReport

_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_IMAGE = 1600


def prompt_usage(request: ChatRequest) -> Usage:
    """An estimate of the prompt's tokens. What a provider thought before its first event stays unknown."""
    parts = [part for message in request.messages for part in message.parts]
    images = sum(isinstance(part, ImagePart) for part in parts)
    characters = sum(len(part.text) for part in parts if not isinstance(part, ImagePart))
    characters += sum(len(call.arguments) for message in request.messages for call in message.tool_calls)
    characters += sum(len(tool.name + tool.description + tool.parameters) for tool in request.tools)
    return Usage(input_tokens=-(-characters // _CHARACTERS_PER_TOKEN) + images * _TOKENS_PER_IMAGE)


def characters(event: Event) -> int:
    """Of the answer in `event`."""
    match event:
        case TextDelta() | ReasoningDelta():
            return len(event.text)
        case ToolCallDelta():
            return len(event.arguments) + len(event.name or "")
    return 0


def output_usage(characters: int) -> Usage:
    """An estimate of what an answer of so many characters took."""
    return Usage(output_tokens=-(-characters // _CHARACTERS_PER_TOKEN))


class AbandonedAttempts:
    """The attempts at one request that were given up unanswered. Each may have cost its prompt, which goes on top of
    what the answered one reports, marked as estimated."""

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self.count = 0

    def early(self) -> list[Event]:
        """What comes after the first event of the answer, so that the books have it if the answer breaks off."""
        if not self.count:
            return []
        prompt = prompt_usage(self._request)
        return [self.added(UsageReport(prompt, estimated=True))]

    def added(self, event: Event) -> Event:
        """`event`, with their cost if it is a `UsageReport`."""
        if not self.count or not isinstance(event, UsageReport):
            return event
        prompts = Usage(input_tokens=self.count * prompt_usage(self._request).input_tokens)
        return UsageReport(event.usage + prompts, estimated=True)
