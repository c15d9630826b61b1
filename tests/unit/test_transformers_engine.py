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
from models.transformers_engine import TransformersChatModel
from models.transformers_sampling import Sampler, draw_of

CALL = Call("r")
ENTRY = next(entry for entry in BUILT_IN if entry.name == "smoke-small").model_copy(
    update={"capabilities": Capabilities()}
)


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
    requests = [ask(f"{'word ' * (30 * n)}What is {n} + {n}?", max_tokens=40 + n) for n in range(5)]
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
    assert Finish("stop", 0, stop) in events
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
    sampler = Sampler()

    def counts(**sampling: Any) -> torch.Tensor:
        default = type("Default", (), {"temperature": None, "top_p": None, "top_k": None})()
        picks = []
        for seed in range(4000):
            draw = draw_of(Sampling(seed=seed, **sampling), default)
            assert draw is not None
            picks.append(int(sampler.perturbed(logits / draw.temperature, draw, 5).argmax()))
        return torch.bincount(torch.tensor(picks), minlength=5) / len(picks)

    assert torch.allclose(counts(), logits.softmax(0), atol=0.03)
    assert torch.allclose(counts(temperature=0.5), (logits / 0.5).softmax(0), atol=0.03)
    nucleus = logits.masked_fill(torch.tensor([True, True, False, True, False]), -torch.inf).softmax(0)
    assert torch.allclose(counts(top_p=0.8), nucleus, atol=0.03)
    assert torch.allclose(counts(top_k=2), nucleus, atol=0.03)  # the same two are left


async def idle(model: TransformersChatModel) -> None:
    """Wait until the engine works on nothing and holds nothing. Raises after 3 s: nothing ends by itself then."""
    processor = model._manager.batch_processor
    async with asyncio.timeout(3.0):
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def able(folder: Path) -> AsyncIterator[TransformersChatModel]:
    """The same model, as an entry that says all that the engine can do."""
    can = Capabilities(logprobs=True, multiple_choices=True, penalties=True, logit_bias=True)
    entry = ENTRY.model_copy(update={"capabilities": can})
    engine = TransformersChatModel(entry, str(ensure_smoke_model("small", folder)), threads=1)
    yield engine
    await engine.close()


async def test_log_probabilities_are_those_of_the_model_itself(able: TransformersChatModel, folder: Path):
    import torch

    reference = Reference(str(ensure_smoke_model("small", folder)))
    request = ask("What is the capital of Spain?", top_logprobs=3, temperature=1.5, seed=4, max_tokens=12)
    done = fold(await answer(able, request))
    messages = [{"role": m.role, "content": m.text} for m in request.messages]
    prompt = reference.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    tokens = [token for token, _, _ in await rows_of(able, request)]
    with torch.no_grad():
        logits = reference.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    assert len(done.logprobs) == len(tokens) == 12
    for row, token, theirs in zip(done.logprobs, tokens, expected, strict=True):
        assert row.token == reference.tokenizer.decode([token])
        assert row.logprob == pytest.approx(float(theirs[token]), abs=1e-3)
        assert [top.logprob for top in row.top] == pytest.approx(theirs.topk(3).values.tolist(), abs=1e-3)
        assert [top.token for top in row.top] == [reference.tokenizer.decode([i]) for i in theirs.topk(3).indices]


async def rows_of(model: TransformersChatModel, request: ChatRequest) -> list[Any]:
    """What the engine notes of its tokens for `request`."""
    noted: list[Any] = []
    made = model._choosing
    model._choosing = lambda sampling, choice: noted.append(made(sampling, choice)) or noted[-1]  # type: ignore[method-assign]
    try:
        await answer(model, request)
    finally:
        del model._choosing  # type: ignore[attr-defined]
    return noted[0].rows


async def test_log_probabilities_change_no_answer_and_need_no_alternatives(able: TransformersChatModel):
    events = await answer(able, ask("Hello", top_logprobs=0, max_tokens=20))
    deltas = [event for event in events if isinstance(event, TextDelta)]
    assert all(len(delta.logprobs) == delta.tokens for delta in deltas)
    assert all(row.logprob <= 0 and not row.top for delta in deltas for row in delta.logprobs)
    assert fold(events).text == await text_of(able, ask("Hello", max_tokens=20))


async def test_choices_are_as_if_asked_one_by_one(able: TransformersChatModel):
    events = await answer(able, ask("Hello", n=3, temperature=1.0, seed=7, max_tokens=25))
    together = fold(events)
    alone = [fold(await answer(able, ask("Hello", temperature=1.0, seed=7 + k, max_tokens=25))) for k in range(3)]
    assert [choice.text for choice in together.choices] == [one.text for one in alone]
    assert len({choice.text for choice in together.choices}) == 3
    assert together.usage.output_tokens == sum(one.usage.output_tokens for one in alone)
    assert together.usage.input_tokens == alone[0].usage.input_tokens
    assert isinstance(events[-1], UsageReport)
    await idle(able)


async def test_one_choice_may_stop_before_the_others(able: TransformersChatModel):
    whole = fold(await answer(able, ask("Hello", n=2, temperature=1.0, seed=7, max_tokens=40)))
    stop = whole.choices[0].text[10:16]
    assert stop not in whole.choices[1].text
    cut = fold(await answer(able, ask("Hello", n=2, temperature=1.0, seed=7, max_tokens=40, stop=(stop,))))
    assert [choice.finish_reason for choice in cut.choices] == ["stop", whole.choices[1].finish_reason]
    assert cut.choices[1].text == whole.choices[1].text
    await idle(able)


async def test_leaving_several_choices_stops_all_of_them(able: TransformersChatModel):
    async with aclosing(able.stream(ask("Hello", n=4, max_tokens=900), CALL)) as events:
        await anext(events)
    await idle(able)


async def test_penalties_and_biases(able: TransformersChatModel):
    plain = await rows_of(able, ask("Hello", top_logprobs=1))
    first = plain[0][0]
    without = await rows_of(able, ask("Hello", top_logprobs=1, logit_bias=((first, -100.0),)))
    assert all(token != first for token, _, _ in without)
    always = await rows_of(able, ask("Hello", top_logprobs=1, max_tokens=8, logit_bias=((first, 100.0),)))
    assert [token for token, _, _ in always] == [first] * 8
    again = await rows_of(able, ask("Hello", top_logprobs=1, presence_penalty=2.0, frequency_penalty=2.0))
    repeated = [len(rows) - len({token for token, _, _ in rows}) for rows in (plain, again)]
    assert repeated[1] < repeated[0] or repeated == [0, 0]
    with pytest.raises(InvalidRequest, match="logit_bias"):
        await answer(able, ask("Hello", logit_bias=((10**8, 1.0),)))


async def test_a_developer_speaks_as_the_system(model: TransformersChatModel):
    said = [
        await text_of(model, ask("Hello", Message(role, (TextPart("Be brief."),)))) for role in ("developer", "system")
    ]
    assert said[0] == said[1] != await text_of(model, ask("Hello"))


async def test_more_requests_than_memory_all_finish_as_if_alone(folder: Path):
    entry = ENTRY.model_copy(update={"context_tokens": 256})
    engine = TransformersChatModel(entry, str(ensure_smoke_model("small", folder)), kv_cache_gb=0.0, threads=1)
    requests = [ask(f"Question {n}", max_tokens=80) for n in range(4)]
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
