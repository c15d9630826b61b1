"""The engine on smoke models, beside `model.generate` on the same checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from models.base import Call, Capabilities
from models.catalog import BUILT_IN, ModelEntry
from models.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    ModelUnavailable,
    SwitchyardError,
    UnsupportedFeature,
)
from models.messages import ChatRequest, Event, Finish, Message, Sampling, TextDelta, TextPart, Tool, UsageReport, fold
from models.smoke import Kind, ensure_smoke_model
from models.transformers_engine import TransformersChatModel, _draw, _Sampler

CALL = Call("r")
ENTRY = next(entry for entry in BUILT_IN if entry.name == "smoke-small")


def ask(text: str, *more: Message, **sampling: Any) -> ChatRequest:
    messages = (*more, Message("user", (TextPart(text),)))
    return ChatRequest("smoke-small", messages, Sampling(**{"temperature": 0.0, "max_tokens": 40, **sampling}))


async def answer(model: TransformersChatModel, request: ChatRequest, call: Call = CALL) -> list[Event]:
    return [event async for event in model.stream(request, call)]


async def text_of(model: TransformersChatModel, request: ChatRequest) -> str:
    return fold(await answer(model, request)).text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smoke")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model(folder: Path) -> AsyncIterator[TransformersChatModel]:
    engine = TransformersChatModel(ENTRY, str(ensure_smoke_model("small", folder)), threads=1)
    yield engine
    await engine.close()


pytestmark = pytest.mark.asyncio(loop_scope="module")


class Reference:
    """`model.generate`, one prompt at a time."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder)

    def __call__(self, request: ChatRequest) -> tuple[str, int, int]:
        messages = [{"role": m.role, "content": m.text} for m in request.messages]
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = self.model.generate(**inputs, max_new_tokens=request.sampling.max_tokens, do_sample=False)
        read = inputs["input_ids"].shape[1]
        written = output[0][read:]
        return self.tokenizer.decode(written, skip_special_tokens=True), read, len(written)


@pytest.mark.parametrize("kind", ["small", "phi", "mistral"])
async def test_greedy_text_is_that_of_generate_alone_and_in_a_batch(kind: Kind, folder: Path):
    checkpoint = str(ensure_smoke_model(kind, folder))
    reference = Reference(checkpoint)
    engine = TransformersChatModel(ENTRY, checkpoint, max_batch_tokens=64, threads=1)
    requests = [ask(f"{'word ' * (30 * n)}What is {n} + {n}?", max_tokens=60 + n) for n in range(6)]
    try:
        together = await asyncio.gather(*(answer(engine, request) for request in requests))
        for request, events in zip(requests, together, strict=True):
            text, read, written = reference(request)
            got = fold(events)
            assert got.text == text
            assert (got.usage.input_tokens, got.usage.output_tokens) == (read, written)
    finally:
        await engine.close()


async def test_tokens_come_one_by_one_and_the_end_is_finish_then_usage(model: TransformersChatModel):
    events = await answer(model, ask("Tell me about rivers", max_tokens=30))
    deltas = [event for event in events if isinstance(event, TextDelta)]
    assert len(deltas) == 30
    assert sum(delta.tokens for delta in deltas) == 30
    assert events[-2] == Finish("length")
    assert isinstance(events[-1], UsageReport) and events[-1].usage.output_tokens == 30


async def test_the_models_own_end_is_a_stop(model: TransformersChatModel):
    events = await answer(model, ask("What is the capital of France?", max_tokens=400))
    assert Finish("stop") in events
    assert "</s>" not in fold(events).text


async def test_a_stop_string_ends_the_answer_before_it(model: TransformersChatModel):
    whole = await text_of(model, ask("Hello"))
    stop = whole[20:27]
    events = await answer(model, ask("Hello", stop=("never there", stop)))
    assert fold(events).text == whole[: whole.find(stop)]
    assert Finish("stop") in events
    await idle(model)


async def test_sampling_repeats_with_a_seed_only_whatever_runs_beside_it(model: TransformersChatModel):
    seeded = ask("Hello", temperature=1.0, seed=7)
    alone = await text_of(model, seeded)
    free = ask("Hello", temperature=1.0)
    others = [ask("Hello", temperature=1.0, seed=8), ask("Hello"), ask("Hello", temperature=2.0), free, free]
    batch = await asyncio.gather(*(text_of(model, request) for request in (*others, seeded)))
    assert batch[-1] == alone
    assert batch[1] == await text_of(model, ask("Hello"))
    assert len(set(batch)) == len(batch)
    assert await text_of(model, ask("Hello", temperature=1.0, top_p=1e-9)) == batch[1]  # only the likeliest is left


async def test_draws_follow_the_softmax_of_what_top_p_leaves():
    import torch

    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 3.0])
    sampler = _Sampler()

    def counts(**sampling: Any) -> torch.Tensor:
        default = type("Default", (), {"temperature": None, "top_p": None, "top_k": None})()
        picks = []
        for seed in range(4000):
            draw = _draw(Sampling(seed=seed, **sampling), default)
            assert draw is not None
            picks.append(int(sampler._perturbed(logits / draw.temperature, draw, 5).argmax()))
        return torch.bincount(torch.tensor(picks), minlength=5) / len(picks)

    assert torch.allclose(counts(), logits.softmax(0), atol=0.03)
    assert torch.allclose(counts(temperature=0.5), (logits / 0.5).softmax(0), atol=0.03)
    nucleus = logits.masked_fill(torch.tensor([True, True, False, True, False]), -torch.inf).softmax(0)
    assert torch.allclose(counts(top_p=0.8), nucleus, atol=0.03)


async def idle(model: TransformersChatModel) -> None:
    """Wait until the engine works on nothing and holds nothing. Raises after a second."""
    processor = model._manager.batch_processor
    async with asyncio.timeout(1.0):
        while processor.has_pending_requests() or processor.cache.pool.num_free_sectors < processor.cache.num_sectors:
            processor.cache.pool.try_to_free_sectors()
            await asyncio.sleep(0.01)
    assert not model._manager.output_router.result_handlers
    assert model._manager.output_router.output_queue.empty()


async def test_closing_the_stream_stops_the_engine(model: TransformersChatModel):
    async with aclosing(model.stream(ask("Hello", max_tokens=900), CALL)) as events:
        async for _ in events:
            break
    await idle(model)


async def test_cancelling_the_task_stops_the_engine(model: TransformersChatModel):
    tasks = [
        asyncio.create_task(answer(model, ask(f"Hello {n}", max_tokens=900))) for n in range(40)
    ]  # 24 have to wait
    await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await idle(model)


async def test_time_is_bounded(model: TransformersChatModel):
    with pytest.raises(DeadlineExceeded):
        await answer(model, ask("Hello", max_tokens=900), Call("r", timeout_s=0.05))
    await idle(model)


async def test_a_prompt_too_long_names_both_numbers(model: TransformersChatModel):
    with pytest.raises(ContextLengthExceeded, match=r"has \d{4} tokens, .* takes 1024 "):
        await answer(model, ask("word " * 3000))
    almost = fold(await answer(model, ask("word " * 490, max_tokens=500)))
    assert almost.finish_reason == "length"
    assert almost.usage.input_tokens + almost.usage.output_tokens == 1024


async def test_what_it_cannot_do_is_refused(model: TransformersChatModel):
    for request, param in (
        (ChatRequest("m", ask("x").messages, tools=(Tool("f"),)), "tools"),
        (ask("x", n=2), "n"),
        (ask("x", top_logprobs=1), "logprobs"),
        (ask("x", presence_penalty=1.0), "presence_penalty"),
    ):
        with pytest.raises(UnsupportedFeature) as caught:
            await answer(model, request)
        assert caught.value.param == param


async def test_a_developer_speaks_as_the_system(model: TransformersChatModel):
    said = [
        await text_of(model, ask("Hello", Message(role, (TextPart("Be brief."),)))) for role in ("developer", "system")
    ]
    assert said[0] == said[1] != await text_of(model, ask("Hello"))


async def test_more_requests_than_memory_all_finish_as_if_alone(folder: Path):
    entry = ENTRY.model_copy(update={"context_tokens": 256})
    engine = TransformersChatModel(entry, str(ensure_smoke_model("small", folder)), kv_cache_gb=0.0, threads=1)
    requests = [ask(f"Question {n}", max_tokens=120) for n in range(6)]
    try:
        together = await asyncio.gather(*(answer(engine, request) for request in requests))
        alone = [await answer(engine, request) for request in requests]
        assert [fold(events) for events in together] == [fold(events) for events in alone]
    finally:
        await engine.close()


async def test_a_stopped_engine_says_so(folder: Path):
    engine = TransformersChatModel(ENTRY, str(ensure_smoke_model("phi", folder)), threads=1)
    await engine.check_health()
    running = asyncio.create_task(answer(engine, ask("Hello", max_tokens=900)))
    await asyncio.sleep(0.1)
    await engine.close()
    with pytest.raises(SwitchyardError):
        await running
    with pytest.raises(ModelUnavailable):
        await engine.check_health()
    with pytest.raises(ModelUnavailable):
        await answer(engine, ask("Hello"))


async def test_a_checkpoint_that_cannot_be_loaded_is_one_clear_line(tmp_path: Path):
    with pytest.raises(ModelUnavailable, match=r"^Model 'smoke-small' cannot be loaded from .*set `source`") as caught:
        TransformersChatModel(ENTRY, str(tmp_path))
    assert "\n" not in caught.value.message


async def test_an_entry_that_promises_too_much_is_refused_at_the_start(folder: Path):
    checkpoint = str(ensure_smoke_model("small", folder))
    with pytest.raises(ModelUnavailable, match=r"reads 1024 tokens"):
        TransformersChatModel(ENTRY.model_copy(update={"context_tokens": 4096}), checkpoint)
    with pytest.raises(ValueError, match=r"has no tools"):
        TransformersChatModel(ENTRY.model_copy(update={"capabilities": Capabilities(tools=True)}), checkpoint)


async def test_a_conversation_the_template_refuses_is_the_callers_error(folder: Path):
    entry = ModelEntry(
        name="strict",
        engine="transformers",
        context_tokens=1024,
        chat_template="{{ raise_exception('roles must alternate') }}",
    )
    engine = TransformersChatModel(entry, str(ensure_smoke_model("phi", folder)), threads=1)
    try:
        with pytest.raises(InvalidRequest, match="roles must alternate"):
            await answer(engine, ask("Hello"))
    finally:
        await engine.close()
