"""`LLMServer:<model>` on a real cluster, beside vLLM's own server code on the same engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.state import Cluster
from deployments import hop
from models.base import Call
from models.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    ModelUnavailable,
    StreamInterrupted,
    UnsupportedFeature,
)
from models.messages import (
    ChatRequest,
    Completion,
    Event,
    Finish,
    Message,
    ResponseFormat,
    Sampling,
    TextDelta,
    TextPart,
    TokenLogprob,
    Tool,
    ToolChoice,
    UsageReport,
    fold,
)
from tests.serve.product import APP

MODEL = "smoke-vllm"
CONTEXT_TOKENS = 1024
CALL = Call("request-1")


def ask(text: str = "Why is the sky blue?", system: str | None = None, **sampling: Any) -> ChatRequest:
    messages = [Message("system", (TextPart(system),))] if system else []
    settings = {"temperature": 0.0, "max_tokens": 60, **sampling}
    return ChatRequest(MODEL, (*messages, Message("user", (TextPart(text),))), Sampling(**settings))


class Server:
    """The deployment, called as the Ingress calls it."""

    def __init__(self, handle: DeploymentHandle) -> None:
        handle._init(_run_router_in_separate_loop=True)  # each test has a loop of its own
        self._handle = handle
        self._stream = handle.options(method_name="stream", stream=True)

    def stream(self, request: ChatRequest, call: Call = CALL) -> Any:
        return hop.stream(self._stream, request, call)

    async def batches(self, request: ChatRequest, call: Call = CALL) -> list[list[Event]]:
        return [batch async for batch in self.stream(request, call)]

    async def answer(self, request: ChatRequest) -> Completion:
        return fold([event for batch in await self.batches(request) for event in batch])

    async def call(self, method: str, *args: Any) -> Any:
        return await hop.call(self._handle.options(method_name=method), *args)

    async def comes_to(self, running: int, within_s: float = 2.0) -> bool:
        """Whether the engine comes to work on as many requests in time."""
        give_up_s = time.monotonic() + within_s
        while await self.call("running") != running:
            if time.monotonic() > give_up_s:
                return False
            await asyncio.sleep(0.005)
        return True

    async def vllms_own(self, request: ChatRequest, **body: Any) -> dict[str, Any]:
        """Text, finish reason, usage and log probabilities of what vLLM's own server answers."""
        asked = request.sampling
        settings = {key: getattr(asked, key) for key in ("max_tokens", "temperature", "top_p", "seed")}
        body = {
            "model": MODEL,
            "messages": [{"role": message.role, "content": message.text} for message in request.messages],
            "stop": list(asked.stop),
            "presence_penalty": asked.presence_penalty or 0.0,
            "frequency_penalty": asked.frequency_penalty or 0.0,
            **{key: value for key, value in settings.items() if value is not None},
            **body,
        }
        chunks = [json.loads(chunk[6:]) for chunk in await self.call("vllms_own_answer", body) if "[DONE]" not in chunk]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        rows = [row for choice in choices for row in (choice.get("logprobs") or {}).get("content", ())]
        return {
            "text": "".join(choice["delta"].get("content") or "" for choice in choices),
            "finish_reason": choices[-1]["finish_reason"],
            "tokens": (chunks[-1]["usage"]["prompt_tokens"], chunks[-1]["usage"]["completion_tokens"]),
            "logprobs": [(row["token"], row["logprob"], len(row["top_logprobs"])) for row in rows],
        }


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Iterator[Server]:
    ray.init(address=cluster.ray_address, log_to_driver=False, configure_logging=False)
    handle = serve.get_deployment_handle(f"LLMServer:{MODEL}", APP)
    yield Server(handle)
    handle.shutdown()  # else it would go on telling the controller what it waits for
    ray.shutdown()


# ---- what is answered ----------------------------------------------------------------------------------------------

GREEDY = [
    ask(),
    ask("Show me the way to the yard — très bien, 你好 😀"),
    ask("Who are you?", system="You are a wagon.", max_tokens=200),
    ask("Tell me a story.", presence_penalty=0.7, frequency_penalty=0.4),
]


@pytest.mark.parametrize("request_", GREEDY, ids=range(len(GREEDY)))
async def test_greedy_text_is_vllms_own_token_for_token(server: Server, request_: ChatRequest) -> None:
    own = await server.vllms_own(request_)
    streamed = await server.answer(request_)
    assert (streamed.text, streamed.finish_reason) == (own["text"], own["finish_reason"])
    assert (streamed.usage.input_tokens, streamed.usage.output_tokens) == own["tokens"]
    whole: list[Event] = await server.call("complete", request_, CALL)
    assert replace(fold(whole), usage=streamed.usage) == streamed  # but for what the prefix cache then held


async def test_a_seed_draws_what_vllms_own_server_draws(server: Server) -> None:
    request = ask(temperature=1.0, top_p=0.9, seed=7)
    own = await server.vllms_own(request)
    assert [(await server.answer(request)).text for _ in range(2)] == [own["text"]] * 2
    assert (await server.answer(ask(temperature=1.0, top_p=0.9, seed=8))).text != own["text"]


async def test_stop_ends_before_the_sequence(server: Server) -> None:
    whole = (await server.answer(ask())).text
    request = ask(stop=(whole[20:24],))
    own = await server.vllms_own(request)
    stopped = await server.answer(request)
    assert (stopped.text, stopped.finish_reason) == (own["text"], "stop")
    assert stopped.text == whole[: whole.index(whole[20:24])]
    assert stopped.usage.output_tokens == own["tokens"][1]


async def test_log_probabilities(server: Server) -> None:
    request = ask(top_logprobs=2, max_tokens=8)
    own = await server.vllms_own(request, logprobs=True, top_logprobs=2)
    found = (await server.answer(request)).logprobs
    assert [(row.token, row.logprob, len(row.top)) for row in found] == own["logprobs"]
    assert len(found) == 8 and all(isinstance(row, TokenLogprob) for row in found)


async def test_several_choices_end_each(server: Server) -> None:
    events = [event for batch in await server.batches(ask(n=3, temperature=1.0, seed=1)) for event in batch]
    assert {event.choice for event in events if isinstance(event, TextDelta)} == {0, 1, 2}
    assert sorted(event.choice for event in events if isinstance(event, Finish)) == [0, 1, 2]
    report = events[-1]
    assert isinstance(report, UsageReport)
    assert report.usage.output_tokens == sum(event.tokens for event in events if isinstance(event, TextDelta))


async def test_an_answer_in_a_schema(server: Server) -> None:
    schema = (
        '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}'
    )
    request = replace(ask(), response_format=ResponseFormat("json_schema", "answer", schema))
    assert json.loads((await server.answer(request)).text)["n"] in (1, 2)


@pytest.mark.parametrize("name", [None, "clock"])
async def test_a_tool_that_has_to_be_called_is(server: Server, name: str | None) -> None:
    schema = (
        '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}'
    )
    choice = ToolChoice("tool", name) if name else ToolChoice("required")
    request = replace(ask(max_tokens=200), tools=(Tool("clock", "", schema),), tool_choice=choice)
    streamed = await server.answer(replace(request, parallel_tool_calls=False))
    assert (streamed.finish_reason, [call.name for call in streamed.tool_calls]) == ("tool_calls", ["clock"])
    assert json.loads(streamed.tool_calls[0].arguments)["n"] in (1, 2)
    whole = fold(await server.call("complete", request, CALL))
    assert whole.tool_calls[0].arguments == streamed.tool_calls[0].arguments


async def test_the_prefix_cache_is_told(server: Server) -> None:
    request = ask("word " * 400)
    first, again = [(await server.answer(request)).usage for _ in range(2)]
    assert first.cached_input_tokens < again.cached_input_tokens < again.input_tokens == first.input_tokens


async def test_max_tokens_beyond_the_context_ends_with_it(server: Server) -> None:
    answer = await server.answer(ask("word " * 400, max_tokens=5000, temperature=1.0, seed=3))
    assert answer.usage.input_tokens + answer.usage.output_tokens <= CONTEXT_TOKENS


# ---- how it streams ------------------------------------------------------------------------------------------------


async def test_streams_come_as_they_are_made_in_our_own_types(server: Server) -> None:
    batches = await server.batches(ask(max_tokens=100))
    events = [event for batch in batches for event in batch]
    assert isinstance(batches[0][0], TextDelta) and batches[0][0].tokens == 1  # at once, without waiting for more
    assert len(batches) > 20
    assert [type(event) for event in events[-2:]] == [Finish, UsageReport]
    assert {type(event).__module__ for event in events} == {"models.messages"}


async def test_a_full_batch_of_streams_gets_each_its_own_answer(server: Server) -> None:
    requests = [ask(f"Question {number}") for number in range(16)]
    together = await asyncio.gather(*(server.answer(request) for request in requests))
    alone = [await server.answer(request) for request in requests[::4]]
    assert [answer.text for answer in together[::4]] == [answer.text for answer in alone]


async def test_a_client_that_leaves_stops_the_engine(server: Server) -> None:
    long = ask(max_tokens=900, presence_penalty=2.0)
    async with aclosing(server.stream(long)) as batches:
        await anext(batches)
        assert await server.call("running") == 1
    assert await server.comes_to(0)
    task = asyncio.create_task(server.call("complete", long, CALL))
    assert await server.comes_to(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await server.comes_to(0)


async def test_the_deadline_stops_the_engine(server: Server) -> None:
    with pytest.raises(DeadlineExceeded):
        await server.batches(ask(max_tokens=900, presence_penalty=2.0), Call("request-2", timeout_s=0.2))
    assert await server.comes_to(0)


# ---- what is refused -----------------------------------------------------------------------------------------------


async def test_a_prompt_too_long_says_both_numbers(server: Server) -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        await server.batches(ask("word " * 3000))
    details = caught.value.details
    assert details["prompt_tokens"] > 3000 and details["context_tokens"] == CONTEXT_TOKENS
    assert str(details["prompt_tokens"]) in caught.value.message and str(CONTEXT_TOKENS) in caught.value.message


async def test_what_the_entry_does_not_offer_is_refused(server: Server) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        await server.call("complete", replace(ask(), reasoning_effort="low"), CALL)
    assert caught.value.param == "reasoning_effort"


async def test_what_vllm_refuses_is_the_callers_fault_and_quotes_no_prompt(server: Server) -> None:
    secret = "a-secret-in-the-prompt"
    wrong = replace(ask(secret), response_format=ResponseFormat("json_schema", "answer", '{"type": "no-such-type"}'))
    with pytest.raises(InvalidRequest, match="no-such-type") as caught:
        await server.batches(wrong)
    assert secret not in caught.value.message
    with pytest.raises(InvalidRequest, match="top_p") as caught:
        await server.call("complete", ask(secret, top_p=7.0), CALL)
    assert secret not in caught.value.message


# ---- the end -------------------------------------------------------------------------------------------------------


async def test_an_engine_that_dies_is_said_so(server: Server) -> None:
    """The last test of the cluster: Serve replaces the replica after this, which takes as long as a first start."""
    processes = await server.call("processes")
    async with aclosing(server.stream(ask(max_tokens=900, presence_penalty=2.0))) as batches:
        await anext(batches)
        for process in processes:
            os.kill(process, signal.SIGKILL)
        with pytest.raises((StreamInterrupted, ModelUnavailable)):
            async for _ in batches:
                pass
    with pytest.raises(ModelUnavailable) as caught:
        await server.batches(ask())
    assert caught.value.retryable
