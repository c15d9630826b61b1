"""Stored answers in Redis 7 or newer, or Valkey.

    switchyard:cache:answer:<exact>:<partition>   the answer, which Redis drops when its time is over
    switchyard:cache:answers:<partition>          sorted set of `exact` by the Unix second when its time is over
    switchyard:cache:partitions                   sorted set of partitions by the last such second

No key is looked for by a pattern, so other users of the same Redis cost nothing. Of one server, or one with replicas;
not of Redis Cluster, where these keys lie on several.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from models.errors import ModelUnavailable
from router.outside import CHUNK, Row

PREFIX = b"switchyard:cache:"
PARTITIONS = PREFIX + b"partitions"
TIMEOUT_S = 5.0


class RedisStore:
    """Fills `router.outside.OutsideStore`. url: as redis-py takes it, `rediss://user:password@host:6379/0`."""

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        """Raises ValueError for a URL that is none."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._errors = redis.RedisError
        self._clock = clock
        self._redis: Any = redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),  # whoever writes tries again, later
            max_connections=2,
        )

    def put(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        now_unix_s = self._clock()
        with self._reached(), self._redis.pipeline(transaction=False) as pipe:
            for row in rows:
                if row.expires_unix_s <= now_unix_s:
                    continue
                tenant, until_ms = _bytes(row.tenant), math.ceil(row.expires_unix_s * 1000)
                answers = _answers(tenant)
                pipe.set(_answer(tenant, row.exact), row.body, pxat=until_ms)
                pipe.zadd(answers, {row.exact: row.expires_unix_s})
                pipe.pexpireat(answers, until_ms, nx=True)
                pipe.pexpireat(answers, until_ms, gt=True)
                pipe.zadd(PARTITIONS, {tenant: row.expires_unix_s}, gt=True)
            for tenant in {_bytes(row.tenant) for row in rows}:
                pipe.zremrangebyscore(_answers(tenant), "-inf", now_unix_s)
            pipe.zremrangebyscore(PARTITIONS, "-inf", now_unix_s)
            pipe.execute()

    def remove(self, tenant: str, exacts: Sequence[str]) -> None:
        if not exacts:
            return
        name = _bytes(tenant)
        with self._reached(), self._redis.pipeline(transaction=False) as pipe:
            pipe.unlink(*(_answer(name, exact) for exact in exacts))
            pipe.zrem(_answers(name), *exacts)
            pipe.execute()

    def clear(self, tenant: str) -> None:
        name = _bytes(tenant)
        while True:
            with self._reached():
                found = self._redis.zrange(_answers(name), 0, CHUNK - 1)
            if not found:
                return
            self.remove(tenant, [exact.decode("ascii", "replace") for exact in found])

    def tenants(self) -> list[str]:
        with self._reached():
            found = self._redis.zrangebyscore(PARTITIONS, f"({self._clock()}", "+inf")
        return [name.decode("utf-8", "surrogatepass") for name in found]

    def read(self, tenant: str, at_once: int = CHUNK) -> Iterator[list[Row]]:
        name, cursor = _bytes(tenant), -1
        while cursor != 0:
            with self._reached():
                cursor, found = self._redis.zscan(_answers(name), max(cursor, 0), count=at_once)
                exacts = [exact.decode("ascii", "replace") for exact, _ in found]
                bodies = self._redis.mget([_answer(name, exact) for exact in exacts]) if exacts else []
            rows = zip(exacts, bodies, strict=True)
            yield [Row(tenant, exact, 0.0, body) for exact, body in rows if body is not None]

    def near(self, tenant: str, vector: bytes, similarity: float) -> Iterator[list[Row]]:
        """All: Redis does not compare."""
        return self.read(tenant)

    def close(self) -> None:
        self._redis.close()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (self._errors, OSError) as error:
            raise ModelUnavailable(
                f"The Redis that keeps stored answers did not do its part ({type(error).__name__}); see 'cache_store'."
            ) from None


def _bytes(tenant: str) -> bytes:
    return tenant.encode("utf-8", "surrogatepass")


def _answers(tenant: bytes) -> bytes:
    return PREFIX + b"answers:" + tenant


def _answer(tenant: bytes, exact: str) -> bytes:
    """`exact` has no colon, so no other partition has the same key."""
    return PREFIX + b"answer:" + exact.encode("ascii", "replace") + b":" + tenant
