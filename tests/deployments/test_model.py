"""Models behind a hop, on a real cluster: called from a deployment, as the Ingress calls them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle, serve
from ray.serve.handle import DeploymentHandle

from deployments import hop
from deployments.cloud import cloud_deployment
from deployments.model import (
    InlineModel,
    ModelHandle,
    TransformersModel,
    model_deployment,
    simulated_deployment,
    transformers_deployment,
)
from models.base import Call
from models.catalog import ModelEntry
from models.errors import ContextLengthExceeded, InternalError, ModelUnavailable, SwitchyardError, UnsupportedFeature
from models.messages import ChatRequest, Event, Message, Sampling, TextDelta, TextPart, Tool, fold
from models.registry import resolve_source
from models.transformers_engine import TransformersChatModel
from router.topology import CloudEndpoint, LocalModel

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers do not have this folder on their path

APP = "model-test"
SMALL = LocalModel(name="smoke-small", engine_args={"threads": 1})
CALL = Call("r")


def ask(text: str, **sampling: Any) -> ChatRequest:
    settings = {"temperature": 0.0, "max_tokens": 40, **sampling}
    return ChatRequest("smoke-small", (Message("user", (TextPart(text),)),), Sampling(**settings))


class Probe(TransformersModel):
    """The shell with a view of what its engine does, and ways to break it."""

    async def working(self) -> int:
        scheduler = self._model._manager.batch_processor.scheduler
        return len(scheduler.active_requests) + len(scheduler.waiting_requests)

    def memory_mb(self) -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") // 1024**2

    async def die(self) -> None:
        os._exit(1)

    async def stop_engine(self) -> None:
        await self._model.close()

    async def fail(self) -> None:
        raise ValueError("a prompt, which nobody may see")


class Door:
    """What an Ingress does with a model."""

    def __init__(self, model: DeploymentHandle) -> None:
        self._model = ModelHandle(model, "Probe:smoke-small")

    async def stream(self, request: ChatRequest) -> AsyncIterator[list[Event]]:
        async with aclosing(self._model.stream(request, CALL)) as batches:
            async for batch in batches:
                yield batch

    async def complete(self, request: ChatRequest) -> list[Event]:
        return await self._model.complete(request, CALL)

    async def leave_stream(self, request: ChatRequest) -> None:
        async with aclosing(self._model.stream(request, CALL)) as batches:
            await anext(batches)

    async def leave_answer(self, request: ChatRequest, after_s: float) -> None:
        task = asyncio.create_task(self._model.complete(request, CALL))
        await asyncio.sleep(after_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()


class Stack:
    """The deployed graph, seen from the driver."""

    def __init__(self, app: str, door: Any, model: str) -> None:
        serve.run(door, name=app, route_prefix=None)
        self._app, self._model = app, model
        self._handles: dict[str, DeploymentHandle] = {}

    def method(self, name: str, stream: bool = False, of: str | None = None) -> DeploymentHandle:
        of = of or self._model
        if of not in self._handles:
            self._handles[of] = serve.get_deployment_handle(of, self._app)
            self._handles[of]._init(_run_router_in_separate_loop=True)  # each test has a loop of its own
        return self._handles[of].options(method_name=name, stream=stream)

    def door(self, name: str, stream: bool = False) -> DeploymentHandle:
        return self.method(name, stream, "Door")

    async def batches(self, request: ChatRequest) -> list[list[Event]]:
        return [batch async for batch in hop.stream(self.door("stream", stream=True), request)]

    async def idle_within(self, timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s):
            while await hop.call(self.method("working")):  # noqa: ASYNC110 - it is in another process
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def stack(local_ray: None, data_dir: str) -> Iterator[Stack]:
    model = model_deployment(Probe, SMALL.name, SMALL.scale, SMALL.resolve().max_batch).bind(SMALL, data_dir)
    door = serve.deployment(Door, name="Door", max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.1})
    yield Stack(APP, door.bind(model), "Probe:smoke-small")
    serve.delete(APP, _blocking=False)  # a deployment that others may call drains for half a minute


async def test_text_over_two_hops_is_the_engines_own_token_for_token(stack: Stack, data_dir: str) -> None:
    entry = SMALL.resolve()
    engine = TransformersChatModel(entry, resolve_source(entry, Path(data_dir)), threads=1)
    near = InlineModel(engine)
    try:
        for number in range(2):
            request = ask(f"Question {number}", max_tokens=60)
            expected = await near.complete(request, CALL)
            batches = await stack.batches(request)
            assert [event for batch in batches for event in batch] == expected
            assert await hop.call(stack.door("complete"), request) == expected
            assert isinstance(batches[0][0], TextDelta) and len(batches) > 10  # sent as they come
    finally:
        await engine.close()


async def test_one_replica_serves_a_full_batch_at_once(stack: Stack) -> None:
    answers = await asyncio.gather(*(stack.batches(ask(f"Question {n}", max_tokens=60)) for n in range(16)))
    assert all(fold([e for batch in answer for e in batch]).usage.output_tokens <= 60 for answer in answers)
    memory_mb = await hop.call(stack.method("memory_mb"))
    print(f"a replica of smoke-small takes {memory_mb} MB")
    assert memory_mb < 900


async def test_a_client_that_leaves_stops_the_engine(stack: Stack) -> None:
    long = ask("Hello", max_tokens=1000)
    await hop.call(stack.door("leave_stream"), long)
    await stack.idle_within(1.0)
    for after_s in (0.0, 0.001, 0.01, 0.2):
        await hop.call(stack.door("leave_answer"), long, after_s)
        await stack.idle_within(1.0)


async def test_a_cancelled_caller_stops_everything_behind_it(stack: Stack) -> None:
    """The driver leaves, the Door is cancelled by Serve, and the model by the Door."""
    async with aclosing(hop.stream(stack.door("stream", stream=True), ask("Hello", max_tokens=1000))) as batches:
        await anext(batches)
    await stack.idle_within(1.0)


@pytest.mark.parametrize("way", ["stream", "complete"])
async def test_errors_cross_both_hops_as_themselves(stack: Stack, way: str) -> None:
    async def answer(request: ChatRequest) -> None:
        await (stack.batches(request) if way == "stream" else hop.call(stack.door("complete"), request))

    with pytest.raises(ContextLengthExceeded, match="takes 1024") as caught:
        await answer(ask("word " * 2000))
    assert type(caught.value) is ContextLengthExceeded and caught.value.param == "messages"
    with pytest.raises(UnsupportedFeature) as unsupported:
        await answer(ChatRequest("smoke-small", ask("x").messages, tools=(Tool("f"),)))
    assert unsupported.value.param == "tools"


async def test_an_unforeseen_error_shows_nothing_of_the_other_side(stack: Stack) -> None:
    with pytest.raises(InternalError) as caught:
        await hop.call(stack.method("fail"))
    assert "prompt" not in str(caught.value) and caught.value.__cause__ is None


async def until_answered(stack: Stack, timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                assert await stack.batches(ask("Are you back?", max_tokens=3))
                return
            except SwitchyardError:
                await asyncio.sleep(0.2)


async def test_a_replica_whose_engine_stopped_is_replaced(stack: Stack) -> None:
    await hop.call(stack.method("stop_engine"))
    with pytest.raises(ModelUnavailable, match="has stopped"):
        await stack.batches(ask("Hello"))
    await until_answered(stack, 90)


async def test_a_replica_that_dies_is_said_so(stack: Stack) -> None:
    async with aclosing(hop.stream(stack.door("stream", stream=True), ask("Hello", max_tokens=1000))) as batches:
        await anext(batches)
        with pytest.raises(ModelUnavailable):
            await hop.call(stack.method("die"))
        with pytest.raises(ModelUnavailable) as caught:
            async for _ in batches:
                pass
    assert caught.value.retryable


async def test_a_simulated_model_streams_in_few_batches_without_think_time(local_ray: None) -> None:
    entry = ModelEntry(name="sim", engine="simulated", context_tokens=4096)
    model = LocalModel(name="sim", entry=entry, engine_args={"output_tokens": 64})
    stack = Stack("sim-test", simulated_deployment(model, ""), "SimulatedModel:sim")
    try:
        handle = stack.method("stream", stream=True)
        batches = [batch async for batch in hop.stream(handle, ask("Hello", max_tokens=64), CALL)]
        assert fold([event for batch in batches for event in batch]).usage.output_tokens == 64
        assert len(batches) < 10
    finally:
        serve.delete("sim-test", _blocking=False)


class Provider(BaseHTTPRequestHandler):
    """An endpoint that streams one word, to whoever has the key. It has no list of models, which a health check may
    ask for."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200 if self.headers["authorization"] == "Bearer k-secret" else 401)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        delta = {"choices": [{"index": 0, "delta": {"content": asked["model"]}, "finish_reason": "stop"}]}
        usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
        for chunk in (json.dumps(delta), json.dumps(usage), "[DONE]"):
            self.wfile.write(f"data: {chunk}\n\n".encode())

    def log_message(self, *args: Any) -> None:
        pass


def test_what_an_engine_does_not_have_is_refused_when_the_graph_is_built() -> None:
    with pytest.raises(
        ValueError, match=r"has no speed; `engine_args` may hold kv_cache_gb, max_batch_tokens, threads"
    ):
        transformers_deployment(LocalModel(name="smoke-small", engine_args={"speed": 9}), "")
    with pytest.raises(ValueError, match="engine: vllm"):
        transformers_deployment(LocalModel(name="smoke-small", device="gpu"), "")


async def test_a_provider_behind_its_own_deployment(local_ray: None) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    entry = ModelEntry(name="far", engine="openai_compatible", source="far-upstream", context_tokens=1000)
    endpoint = CloudEndpoint(
        name="loop",
        dialect="openai",
        base_url=f"http://127.0.0.1:{server.server_port}/v1",
        api_key_env="LOOP_KEY",
        models=(entry,),
    )
    try:
        stack = Stack("cloud-test", cloud_deployment(endpoint, ["k-wrong", "k-secret"]), "CloudModel:loop")
        request = ChatRequest("far", ask("Hello").messages)
        completion = fold(await hop.call(stack.method("complete"), request, CALL))
        assert completion.text == "far-upstream"
        assert completion.usage.output_tokens == 1
        stats = await hop.call(stack.method("stats"))
        assert stats["key_rests"] == {"refused": 1} and stats["keys_resting"] == {"": 1}
        serve.delete("cloud-test", _blocking=False)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
