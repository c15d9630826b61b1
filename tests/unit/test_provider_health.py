"""What is known of a provider's health."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from models.base import Call
from models.errors import InvalidRequest, ModelUnavailable, RateLimited, StreamInterrupted
from models.messages import ChatRequest, Event, Finish, Message, TextDelta, TextPart
from models.provider_health import FRESH_S, Watched

CALL = Call("r1")
ASKED = ChatRequest("m", (Message("user", (TextPart("hi"),)),))


class Provider:
    """Does what it is told, and counts how often its health was asked for."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.fails_later = False
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked = 0
        self.closed = False

    async def stream(self, request: ChatRequest, call: Call):
        if self.error and not self.fails_later:
            raise self.error
        event: Event = TextDelta("a")
        yield event
        if self.error:
            raise self.error
        yield Finish("stop")

    async def check_health(self) -> None:
        self.asked += 1
        await self.answers.wait()
        if self.error:
            raise self.error

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def watched():
    provider = Provider()
    clock = [1_000_000.0]
    watched = Watched(provider, lambda: clock[0])
    watched.provider, watched.clock = provider, clock
    return watched


async def use(watched: Watched) -> None:
    async with aclosing(watched.stream(ASKED, CALL)) as events:
        async for _ in events:
            pass


async def test_what_requests_showed_needs_no_question(watched):
    await use(watched)
    health = await watched.health(1)
    assert health == {"state": "healthy", "checked_at": "1970-01-12T13:46:40+00:00", "last_error_code": None}
    assert watched.provider.asked == 0


@pytest.mark.parametrize(
    ("error", "later", "state"),
    [
        (ModelUnavailable("down"), False, "unhealthy"),
        (StreamInterrupted("cut"), True, "unhealthy"),
        (RateLimited("slow down"), False, "limited"),
    ],
)
async def test_the_providers_faults_are_remembered(watched, error, later, state):
    watched.provider.error, watched.provider.fails_later = error, later
    with pytest.raises(type(error)):
        await use(watched)
    health = await watched.health(1)
    assert (health["state"], health["last_error_code"]) == (state, error.code)
    watched.provider.error = None
    await use(watched)
    health = await watched.health(1)
    assert (health["state"], health["last_error_code"]) == ("healthy", error.code)


@pytest.mark.parametrize(
    "error", [InvalidRequest("no"), ModelUnavailable("refused access", None, None, {"provider_status": 403})]
)
async def test_what_is_about_one_request_says_nothing_of_the_provider(watched, error):
    watched.provider.error = error
    with pytest.raises(type(error)):
        await use(watched)
    watched.provider.error = None
    assert (await watched.health(1))["last_error_code"] is None
    assert watched.provider.asked == 1


async def test_it_asks_again_when_what_it_knows_is_old(watched):
    assert (await watched.health(1))["state"] == "healthy"
    watched.provider.error = ModelUnavailable("down")
    assert (await watched.health(1))["state"] == "healthy"
    watched.clock[0] += FRESH_S + 1
    assert (await watched.health(1))["state"] == "unhealthy"
    assert watched.provider.asked == 2


async def test_a_provider_that_does_not_answer_holds_nobody_up(watched):
    watched.provider.answers.clear()
    answers = await asyncio.wait_for(asyncio.gather(*(watched.health(0.01) for _ in range(5))), 2)
    assert {answer["state"] for answer in answers} == {"unknown"}
    assert watched.provider.asked == 1  # one question for all of them
    watched.provider.answers.set()
    assert (await watched.health(1))["state"] == "healthy"


async def test_a_fault_of_ours_is_not_health(watched):
    watched.provider.error = ValueError("a bug")
    assert (await watched.health(1))["last_error_code"] == "upstream_failed"


async def test_closing_ends_the_question(watched):
    watched.provider.answers.clear()
    await watched.health(0.01)
    await watched.close()
    assert watched.provider.closed
    await asyncio.sleep(0)
    assert watched._check.cancelled()
