from __future__ import annotations

import asyncio

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray import cloudpickle
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError, WorkerCrashedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
    RequestCancelledError,
)

from deployments.hop import hop_errors
from models.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InternalError,
    ModelUnavailable,
    Overloaded,
    SwitchyardError,
)


def remote(cause: BaseException) -> RayTaskError:
    """As Ray raises it at the caller: our class and RayTaskError at once, with the remote traceback as its text."""
    error = RayTaskError("f", "Traceback (most recent call last):\n  secret", cause, "p", 1, "127.0.0.1")
    return cloudpickle.loads(cloudpickle.dumps(error)).as_instanceof_cause()


def raised_by(error: BaseException) -> SwitchyardError:
    with pytest.raises(SwitchyardError) as caught, hop_errors("Stage"):
        raise error
    return caught.value


def over_grpc(code: StatusCode) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), "Socket closed")


def test_our_own_errors_arrive_as_they_left():
    sent = ContextLengthExceeded("too long: 9 tokens, 8 fit", "messages", None, {"limit": 8})
    for error in (sent, remote(sent), remote(remote(sent))):
        got = raised_by(error)
        assert type(got) is ContextLengthExceeded
        assert (got.message, got.param, got.details) == (sent.message, sent.param, sent.details)


@pytest.mark.parametrize("error", [over_grpc(StatusCode.RESOURCE_EXHAUSTED), RuntimeError("Unexpected")])
def test_what_another_replica_would_meet_too_is_not_tried_again(error: Exception):
    assert type(raised_by(error)) is InternalError


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ActorUnavailableError("gone", None),
        WorkerCrashedError(),
        DeploymentUnavailableError(DeploymentID("Stage", "app")),
        ReplicaUnavailableError("r"),
        over_grpc(StatusCode.UNAVAILABLE),
        over_grpc(StatusCode.UNKNOWN),
        RuntimeError("Unexpected error (StatusCode.UNAVAILABLE): Socket closed."),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_replica_that_went_away_may_be_tried_again(error: Exception):
    got = raised_by(error)
    assert type(got) is ModelUnavailable
    assert got.retryable
    assert "Stage" in got.message


def test_an_actor_that_died_further_on_is_seen_through_serves_wrapper():
    wrapped = RayServeException("upstream")
    wrapped.__cause__ = ActorDiedError()
    assert type(raised_by(wrapped)) is ModelUnavailable


def test_back_pressure_keeps_its_retry_after():
    got = raised_by(BackPressureError(5, 5, 503, 7.0))
    assert type(got) is Overloaded
    assert got.retry_after_s == 7.0
    assert raised_by(BackPressureError(5, 5)).retry_after_s == 1.0


@pytest.mark.parametrize("error", [TimeoutError(), GetTimeoutError()], ids=lambda e: type(e).__name__)
def test_a_time_out_is_a_deadline(error: Exception):
    assert type(raised_by(error)) is DeadlineExceeded


def test_anything_else_says_neither_message_nor_traceback():
    for error in (remote(ValueError("my prompt")), ValueError("my prompt")):
        got = raised_by(error)
        assert type(got) is InternalError
        assert "prompt" not in got.message and "Traceback" not in got.message
        assert got.__cause__ is None and got.__suppress_context__


async def test_our_own_cancellation_passes():
    async def work() -> None:
        with hop_errors("Stage"):
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                raise RequestCancelledError("r") from None

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), RequestCancelledError("r")], ids=lambda e: type(e).__name__
)
async def test_a_cancellation_from_the_other_end_is_a_failure(error: BaseException):
    assert type(raised_by(error)) is ModelUnavailable
