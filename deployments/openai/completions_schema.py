"""OpenAI's completions body, the older API for texts to go on with, checked and turned into `ChatRequest`s.

Source: https://platform.openai.com/docs/api-reference/completions/create. What is not listed here is refused with 400.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from deployments.openai.body import Body, read_json
from deployments.openai.chat_schema import StreamOptions, SwitchyardBody
from models.errors import InvalidRequest, UnsupportedFeature
from models.messages import ChatRequest, Message, Sampling, TextPart
from router.pipeline import Options
from router.validation import check_request

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own."""

MAX_PROMPTS = 128


class CompletionsBody(Body):
    """Body of POST /v1/completions."""

    model: str = Field(min_length=1, max_length=200)
    prompt: str | list[str] | list[int] | list[list[int]]
    best_of: int | None = Field(None, ge=1, le=20)
    echo: bool | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    max_tokens: int | None = Field(DEFAULT_MAX_TOKENS, ge=0)
    n: int | None = Field(None, ge=1, le=16)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    suffix: str | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    user: str | None = Field(None, max_length=256)
    switchyard: SwitchyardBody = SwitchyardBody()


@dataclass(frozen=True, slots=True)
class ParsedCompletions:
    """`requests`: one for each prompt."""

    requests: tuple[ChatRequest, ...]
    options: Options
    stream: bool
    include_usage: bool
    echo: bool


def parse_completions(body: bytes) -> ParsedCompletions:
    """Raises `InvalidRequest` naming the field, or `UnsupportedFeature` for what is not served."""
    parsed = read_json(CompletionsBody, body)
    _refuse(parsed)
    prompts = [parsed.prompt] if isinstance(parsed.prompt, str) else parsed.prompt
    texts = tuple(prompt for prompt in prompts if isinstance(prompt, str))
    if len(texts) != len(prompts):
        raise UnsupportedFeature("'prompt' takes texts: token numbers are those of one tokenizer only.", "prompt")
    if not texts or not all(texts):
        raise InvalidRequest("'prompt' is empty or has an empty text in it; give a text to go on with.", "prompt")
    if len(texts) > MAX_PROMPTS:
        raise InvalidRequest(f"'prompt' takes up to {MAX_PROMPTS} texts; send the others separately.", "prompt")
    if parsed.stream and len(texts) > 1:
        raise UnsupportedFeature("Several prompts cannot be streamed; send one, or leave out 'stream'.", "stream")
    requests = tuple(_request(parsed, text) for text in texts)
    for request in requests:
        check_request(request)
    return ParsedCompletions(
        requests,
        parsed.switchyard.options(),
        bool(parsed.stream),
        bool(parsed.stream_options and parsed.stream_options.include_usage),
        bool(parsed.echo),
    )


def _refuse(body: CompletionsBody) -> None:
    if body.suffix:
        raise UnsupportedFeature("'suffix' needs a model that fills in the middle; there is none here.", "suffix")
    if body.logit_bias:
        raise UnsupportedFeature("'logit_bias' takes the token numbers of one tokenizer; leave it out.", "logit_bias")
    if body.best_of not in (None, body.n or 1):
        raise UnsupportedFeature("'best_of' other than 'n' is not served; ask for 'n' and choose.", "best_of")
    if body.echo and body.logprobs is not None:
        raise UnsupportedFeature("The log probabilities of a prompt are not served; leave out 'echo'.", "echo")
    if body.max_tokens == 0:
        raise UnsupportedFeature("'max_tokens' has to be 1 or more: prompts are not scored.", "max_tokens")


def _request(body: CompletionsBody, text: str) -> ChatRequest:
    return ChatRequest(
        model=body.model,
        messages=(Message("user", (TextPart(text),)),),
        sampling=Sampling(
            max_tokens=body.max_tokens or DEFAULT_MAX_TOKENS,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
            stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
            n=body.n or 1,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            top_logprobs=body.logprobs,
        ),
        user=body.user,
        raw_prompt=True,
    )
