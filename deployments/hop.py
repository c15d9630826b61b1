"""Calls from one deployment to another: cancellation reaches the replica, and Ray's errors become ours here only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from grpc import StatusCode
from grpc.aio import AioRpcError
from ray.exceptions import (
    AsyncioActorExit,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from models.errors import DeadlineExceeded, InternalError, ModelUnavailable, Overloaded, SwitchyardError

# What a caller meets when the process that should answer is gone. Another replica may well answer.
_REPLICA_GONE = (
    RayActorError,
    WorkerCrashedError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    ObjectLostError,
    AsyncioActorExit,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
_CONNECTION_LOST = (StatusCode.UNAVAILABLE, StatusCode.CANCELLED, StatusCode.UNKNOWN, StatusCode.INTERNAL)
"""How gRPC says that the other end went away. What a replica itself raises travels inside an answer."""


@contextmanager
def hop_errors(deployment: str) -> Iterator[None]:
    """Whatever Ray raises while `deployment` is called leaves as one of `models.errors`, without a remote traceback.

    `asyncio.CancelledError` passes only when the task that is in here was cancelled itself: a cancellation that began
    at the other end is a failure of that end, and must not look as if the client had left.
    """
    try:
        yield
    except (asyncio.CancelledError, TaskCancelledError) as error:
        if _being_cancelled():
            raise asyncio.CancelledError from error
        raise _gone(deployment) from None
    except Exception as error:
        raise translate(error, deployment) from None


def translate(error: BaseException, deployment: str) -> SwitchyardError:
    """Our error for what a call of `deployment` raised."""
    while isinstance(error, RayTaskError):  # also a subclass of its cause's class, so it has to be opened first
        error = error.cause
    if isinstance(error, SwitchyardError):
        return error
    if isinstance(error, BackPressureError):
        retry_after_s = error.retry_after_s or 1.0
        return Overloaded(f"{deployment} has too many requests waiting; try again later.", None, retry_after_s)
    died_upstream = isinstance(error, RayServeException) and isinstance(error.__cause__, RayActorError)
    if (
        died_upstream
        or _connection_lost(error)
        or isinstance(error, (*_REPLICA_GONE, TaskCancelledError, asyncio.CancelledError))
    ):
        return _gone(deployment)
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"{deployment} did not answer in time; try again or allow more time.")
    return InternalError(f"{deployment} failed ({type(error).__name__}); its replica's log says why.")


def _connection_lost(error: BaseException) -> bool:
    """Serve (2.60, `replica_result.py`) turns only some of gRPC's errors into Ray's, and one into a bare RuntimeError:
    where a replica died before it had said whether it takes the request."""
    if isinstance(error, AioRpcError):
        return error.code() in _CONNECTION_LOST
    lost = tuple(f"Unexpected error ({code})" for code in _CONNECTION_LOST)
    return isinstance(error, RuntimeError) and str(error).startswith(lost)


def method(handle: DeploymentHandle, name: str, stream: bool = False) -> DeploymentHandle:
    """`handle` set to one method, for `call` or `stream`. Make it once and keep it: all of them share one router.

    What crosses a hop are plain values and our own classes, which pickle by name. Serve's default, cloudpickle, can
    also send code, and takes a third of a hop's Python time for that.
    """
    return handle.options(
        method_name=name, stream=stream, request_serialization="pickle", response_serialization="pickle"
    )


async def call(method: DeploymentHandle, *args: Any) -> Any:
    """One answer from `method`. Cancelling this cancels the replica's work."""
    response = method.remote(*args)
    try:
        with hop_errors(method.deployment_name):
            return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


async def ask_all(handle: DeploymentHandle, method: str, *args: Any, timeout_s: float) -> list[Any]:
    """What the replicas of a deployment answer within `timeout_s`; one that hangs or fails says nothing, and none is
    started for it."""
    return (await ask_each(handle, method, *args, timeout_s=timeout_s))[0]


async def ask_each(handle: DeploymentHandle, method: str, *args: Any, timeout_s: float) -> tuple[list[Any], int]:
    """`ask_all`, and how many replicas said nothing; 1 where not even their number is known."""
    try:
        with hop_errors(handle.deployment_name):
            answers = await handle.broadcast(method, *args).results_async(timeout_s=timeout_s, return_exceptions=True)
    except SwitchyardError:
        return [], 1
    told = [answer for answer in answers if not isinstance(answer, BaseException)]
    return told, len(answers) - len(told)


async def stream(method: DeploymentHandle, *args: Any) -> AsyncIterator[Any]:
    """What `method`, made with `stream=True`, yields. Closing it, or cancelling its task, stops the replica's work."""
    responses: Any = method.remote(*args)
    finished = False
    try:
        with hop_errors(method.deployment_name):
            async for item in responses:
                yield item
        finished = True
    finally:
        if not finished:
            responses.cancel()


def _gone(deployment: str) -> ModelUnavailable:
    return ModelUnavailable(f"A replica of {deployment} went away or none is up; try again.", None, 1.0)


def _being_cancelled() -> bool:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # a synchronous caller
        return False
    return task is not None and task.cancelling() > 0
