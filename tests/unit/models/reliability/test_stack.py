from __future__ import annotations

import pytest
from pydantic import ValidationError

from models.catalog import ModelEntry
from models.errors import ModelUnavailable, StreamInterrupted, UpstreamFailed
from models.messages import TextDelta, Usage, UsageReport
from models.reliability.circuit_breaker import CircuitOpen
from models.reliability.settings import BreakerSettings, ReliabilitySettings, RetrySettings, TimeoutSettings
from models.reliability.stack import ReliableModel
from tests.unit.models.reliability.scripted import CALL, GOOD, REQUEST, Scripted, collect, failure

ENTRIES = [ModelEntry(name="m", engine="openai_compatible", context_tokens=100)]
QUICK = ReliabilitySettings(retries=RetrySettings(base_s=0.001, max_backoff_s=0.002))


def stack(
    *scripts: object, keys: int = 1, settings: ReliabilitySettings = QUICK
) -> tuple[ReliableModel, list[Scripted]]:
    inner = [Scripted(scripts) for _ in range(keys)]  # type: ignore[arg-type]
    return ReliableModel("acme", inner, ENTRIES, settings), inner


async def test_a_good_answer_passes_through_all_of_it_unchanged() -> None:
    for keys in (1, 3):
        model, _ = stack(GOOD, keys=keys)
        assert await collect(model) == list(GOOD)


async def test_its_settings_can_change_while_it_runs() -> None:
    model, (inner,) = stack((9.0,))
    model.settings = QUICK.model_copy(update={"timeouts": TimeoutSettings(first_event_s=0.02)})
    assert type(await failure(model)) is UpstreamFailed
    model.settings = QUICK.model_copy(update={"retries": RetrySettings(max_attempts=1)})
    inner.scripts, before = [(UpstreamFailed("down"),)], len(inner.calls)
    await failure(model)
    assert len(inner.calls) == before + 1


async def test_an_open_breaker_is_not_waited_for_and_shows() -> None:
    settings = QUICK.model_copy(update={"breaker": BreakerSettings(min_requests=3)})
    model, (inner,) = stack((UpstreamFailed("down"),), settings=settings)
    await failure(model)
    assert len(inner.calls) == 3 and model.stats()["breaker_open"] == {"m": 1}
    assert type(await failure(model)) is CircuitOpen and len(inner.calls) == 3
    with pytest.raises(ModelUnavailable):
        await model.check_health()
    assert model.stats()["breaker_refused"] == {"m": 1}


async def test_a_refused_key_costs_no_retry() -> None:
    model, (first, second) = stack(GOOD, keys=2)
    first.scripts = [(ModelUnavailable("no", None, None, {"provider_status": 401}),)]
    assert await collect(model) == list(GOOD)
    stats = model.stats()
    assert (stats["retries"], stats["key_rests"], stats["keys_resting"]) == ({}, {"refused": 1}, {"": 1})
    assert (len(first.calls), len(second.calls)) == (1, 1)


async def test_after_the_first_event_nothing_is_switched() -> None:
    model, keys = stack((TextDelta("Hi"), StreamInterrupted("cut")), keys=2)
    assert type(await failure(model)) is StreamInterrupted
    assert sum(len(key.calls) for key in keys) == 1


async def test_a_count_that_cannot_be_is_replaced() -> None:
    model, _ = stack((TextDelta("Hi"), GOOD[1], UsageReport(Usage(-1, 5))))
    assert (await collect(model))[-1] == UsageReport(Usage(10, 1), estimated=True)


async def test_it_counts_tokens_where_its_model_does() -> None:
    class Counting(Scripted):
        async def count_tokens(self, *_: object) -> int:
            return 7

    assert await ReliableModel("acme", [Counting([GOOD])], ENTRIES).count_tokens(REQUEST, CALL) == 7
    assert await ReliableModel("acme", [Scripted([GOOD])], ENTRIES).count_tokens(REQUEST, CALL) is None


async def test_closing_closes_every_key() -> None:
    model, keys = stack(GOOD, keys=3)
    await model.close()
    assert [key.closed for key in keys] == [1, 1, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeouts": {"first_event": 1}},
        {"retries": {"max_attempts": 0}},
        {"breaker": {"cooldown_s": 10, "max_cooldown_s": 5}},
        {"hedging": {"mode": "always"}},
    ],
)
def test_settings_are_strict(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ReliabilitySettings.model_validate(wrong)
