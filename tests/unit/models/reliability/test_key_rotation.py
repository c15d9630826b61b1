from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from models.errors import InvalidRequest, ModelUnavailable, RateLimited, StreamInterrupted, UpstreamFailed
from models.messages import TextDelta
from models.reliability.key_rotation import KeyRotation
from models.reliability.settings import KeyRestSettings
from models.reliability.tally import Tally
from tests.unit.models.reliability.scripted import CALL, GOOD, REQUEST, Clock, Scripted, collect, failure

SETTINGS = KeyRestSettings(limited_s=5, max_limited_s=20, refused_s=60, max_refused_s=200)


class Case:
    """`scripts`: what each key's model does, again and again."""

    def __init__(self, *scripts: tuple[object, ...]) -> None:
        self.keys = [Scripted([script]) for script in scripts]  # type: ignore[list-item]
        self.tally, self.clock = Tally(), Clock()
        self.model = KeyRotation(self.keys, "acme", lambda: SETTINGS, self.tally, self.clock)

    @property
    def used(self) -> list[int]:
        return [len(key.calls) for key in self.keys]


def refused(status: int = 401) -> ModelUnavailable:
    return ModelUnavailable("no", None, None, {"provider_status": status})


async def test_keys_take_turns() -> None:
    case = Case(GOOD, GOOD, GOOD)
    for _ in range(7):
        assert await collect(case.model) == list(GOOD)
    assert case.used == [3, 2, 2]


async def test_a_limited_key_rests_as_long_as_it_was_told_and_the_next_one_answers() -> None:
    case = Case((RateLimited("slow", None, 12.0),), GOOD)
    for _ in range(4):
        assert await collect(case.model) == list(GOOD)
    assert case.used == [1, 4] and case.model.resting() == 1
    case.clock.now_s += 12
    assert case.model.resting() == 0
    await collect(case.model)
    await collect(case.model)
    assert case.used[0] == 2
    assert case.tally.snapshot()["key_rests"] == {"limited": 2}


async def test_a_limit_is_of_one_model() -> None:
    case = Case((RateLimited("slow"),), GOOD)
    await collect(case.model)
    case.keys[0].scripts = [GOOD]
    await collect(case.model, request=replace(REQUEST, model="other"))
    await collect(case.model, request=replace(REQUEST, model="other"))
    assert case.used == [2, 2]


@pytest.mark.parametrize("status", [401, 402, 429])
async def test_a_refused_key_is_set_aside_and_the_log_does_not_show_it(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case(GOOD, (refused(status),))
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            assert await collect(case.model) == list(GOOD)
    assert case.used == [4, 1]
    assert caplog.messages == [f"provider acme answered {status} to key 2 of 2; it rests for 60 s"]
    assert case.tally.snapshot()["key_rests"] == {"refused": 1}
    # It may have been the provider's mistake: it gets another chance, and rests longer each time.
    case.clock.now_s += 60
    await collect(case.model)
    await collect(case.model)
    assert case.used[1] == 2
    case.clock.now_s += 119
    await collect(case.model)
    await collect(case.model)
    assert case.used[1] == 2


async def test_what_one_request_is_refused_sets_no_key_aside_for_the_others() -> None:
    case = Case((refused(403),), (refused(403),))
    for _ in range(3):
        error = await failure(case.model)
        assert type(error) is ModelUnavailable and error.details == {"provider_status": 403}
    assert case.used == [3, 3] and case.model.resting() == 0
    case.keys[1].scripts = [GOOD]
    assert await collect(case.model) == list(GOOD), "the other key may have the right to it"


async def test_all_limited() -> None:
    case = Case((RateLimited("slow", None, 9.0),), (RateLimited("slow", None, 4.0),))
    for _ in range(2):
        error = await failure(case.model)
        assert type(error) is RateLimited and error.retry_after_s == 4.0
    assert case.used == [1, 1]  # nobody asks a provider that has said when


async def test_all_refused() -> None:
    case = Case((refused(),), (refused(),))
    for _ in range(2):
        error = await failure(case.model)
        assert type(error) is ModelUnavailable and error.retry_after_s == 60.0
        assert error.details == {"provider_status": 401} and "operator" in error.message
    assert case.used == [1, 1]


async def test_one_limited_one_refused_is_a_rate_limit() -> None:
    error = await failure(Case((refused(),), (RateLimited("slow", None, 4.0),)).model)
    assert type(error) is RateLimited and error.retry_after_s == 4.0


@pytest.mark.parametrize("error", [UpstreamFailed("down"), InvalidRequest("no"), ModelUnavailable("unreachable")])
async def test_what_is_not_about_the_key_goes_out(error: Exception) -> None:
    case = Case((error,), GOOD)
    assert await failure(case.model) is error
    assert case.used == [1, 0] and case.model.resting() == 0


async def test_after_the_first_event_no_other_key_goes_on() -> None:
    case = Case((TextDelta("Hi"), StreamInterrupted("cut")), GOOD)
    assert type(await failure(case.model)) is StreamInterrupted
    assert case.used == [1, 0]


async def test_the_next_key_has_what_is_left_of_the_time() -> None:
    case = Case((0.05, RateLimited("slow")), GOOD)
    await collect(case.model, replace(CALL, timeout_s=1.0))
    assert 0.5 < case.keys[1].calls[0].timeout_s <= 0.96
    late = Case((0.05, RateLimited("slow")), GOOD)
    assert type(await failure(late.model, replace(CALL, timeout_s=0.01))) is RateLimited
    assert late.used == [1, 0]


async def test_closing_closes_all() -> None:
    case = Case(GOOD, GOOD)
    await case.model.check_health()
    await case.model.close()
    assert [key.closed for key in case.keys] == [1, 1]
