"""`SemanticCache`: answers shared by all ingress replicas, found by the very question or by a similar one.

A shard is one deployment of one replica, since an index has one owner; the caller picks it by the rendezvous hash of
the tenant, which moves no tenant when replicas restart. It is not placed in the ingress: each replica of that would
have an index of its own, and torch.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments.cache_disk import CacheDisk
from deployments.hop import call, method
from deployments.live_settings import LiveSettings
from models.encoder import MAX_WINDOWS, Encoder
from models.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelUnavailable,
    Overloaded,
    SwitchyardError,
    UnsupportedFeature,
)
from router.invalidation import Forgotten, Selection
from router.ports import ANY_TERMS, CachedAnswer, CacheKey, Lookup, Terms
from router.sealing import Sealer
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings
from router.topology import Encoder as EncoderPlace
from router.topology import Topology

NAME = "SemanticCache"
NO_SECRET = SecretStr("")
logger = logging.getLogger("ray.serve")
MAX_UNSENT = 128
"""Answers per caller and shard. One that would wait behind more of them is not kept: a later miss, not a slower
request."""

STORE_TIMEOUT_S = 20.0
"""For one hop with up to `MAX_UNSENT` answers, of which each may have to be encoded."""

STUCK_AFTER_S = 60.0
"""A batch takes milliseconds; one this old has lost its thread, and so has every request behind it."""

Storable = tuple[CacheKey, CachedAnswer, bytes | None]
"""An answer, where it belongs and the embedding of its question, if there is one already."""

EMBED_AT_ONCE = 8
"""Texts of one caller's list that go into a batch, so that lookups find a place beside them."""

MAX_EMBEDDING = 32
"""Lists of texts that are embedded or wait for it. They must not take the places of lookups."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """`vector`: float32, little-endian, unit length; None for a text that cannot be encoded or has too many windows.
    `whole`: it stands for all of the text. `batch_ms`: what its batch took."""

    vector: bytes | None
    tokens: int
    whole: bool
    batch_ms: float = 0.0


class SemanticCache:
    """The deployment: encodes in dynamic batches off the event loop, then searches. Its `user_config` is
    `CacheSettings`; without one the defaults hold. Raises `ModelUnavailable` where the encoder cannot be loaded."""

    def __init__(self, encoder: EncoderPlace, folder: str | None = None, encryption: SecretStr = NO_SECRET) -> None:
        """folder: where its answers are on disk; None: nowhere. encryption: keys, as `Sealer.of` takes them."""
        self._encoder = Encoder(encoder.source, encoder.device, precision=encoder.precision)
        self._settings = LiveSettings(CacheSettings)
        self._store = SemanticStore(CacheSettings())
        self._folder, self._sealer = folder, Sealer.of(encryption.get_secret_value())
        self._disk: CacheDisk | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._encode = serve.batch(max_batch_size=encoder.max_batch, batch_wait_timeout_s=encoder.batch_wait_s)(
            self._encode_batch
        )
        self._embedding = 0
        self._turn = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._batch_began_s: float | None = None
        self._counts: Counter[str] = Counter()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        if settings := self._settings.accept(user_config):
            self._store.reconfigure(settings)
        if self._folder is not None and self._disk is None:  # Serve calls this before it sends the first request
            self._disk = CacheDisk(self._store, Path(self._folder), self._sealer)

    async def lookup(self, key: CacheKey, terms: Terms = ANY_TERMS) -> Lookup:
        found = self._store.exact(key, terms)
        if found is not None:
            return found
        embedding, encoder_ms = None, 0.0
        if key.scope:
            encoded = await self._encoded(key.text)
            embedding, encoder_ms = encoded.vector if encoded.whole else None, encoded.batch_ms
        return replace(self._store.lookup(key, embedding, terms), encoder_ms=encoder_ms)

    async def store(self, answers: Sequence[Storable]) -> int:
        """Keep `answers`. Returns how many could not be kept."""
        kept = await asyncio.gather(*(self._keep(*each) for each in answers), return_exceptions=True)
        failed = [result for result in kept if isinstance(result, Exception)]
        if failed:
            logger.error("%d of %d answers were not kept (%s)", len(failed), len(answers), type(failed[0]).__name__)
        return len(failed)

    async def release(self, key: CacheKey, claimant: str) -> None:
        """See `SemanticStore.release`."""
        self._store.release(key, claimant)

    async def judge(self, org: str, answer_id: str, voice: str, score: float) -> str | None:
        """See `SemanticStore.judge`."""
        if self._disk is not None:
            await self._disk.restored()
        return self._store.judge(org, answer_id, voice, score)

    async def invalidate(self, selection: Selection, dry_run: bool) -> Forgotten:
        """Drop the answers that are meant, or only say which. Raises `InvalidRequest` for a question that cannot be
        compared by meaning."""
        embedding = None
        if self._disk is not None:
            await self._disk.restored()
        if selection.question is not None:
            embedding = (await self._encoded(selection.question)).vector
            if embedding is None:
                raise InvalidRequest("'question' cannot be encoded, or is too long; give a shorter one.", "question")
        found = Forgotten.of(self._store.invalidate(selection, embedding, dry_run))
        if self._disk is not None and not dry_run:
            await self._disk.flush()  # before anybody is told that it is gone
        return found

    async def embed(self, texts: Sequence[str], dimensions: int | None) -> tuple[list[bytes], int]:
        """The vectors of `texts` (float32, little-endian, unit length) and how many tokens these have.

        Raises `InvalidRequest` for a text or a number of dimensions that the encoder does not have, `Overloaded`.
        """
        if self._embedding >= MAX_EMBEDDING:
            raise Overloaded("Too many texts wait for the encoder; try again.", None, 1.0)
        self._embedding += 1
        vectors: list[bytes] = []
        tokens = 0
        try:
            for start in range(0, len(texts), EMBED_AT_ONCE):
                async with self._turn:
                    some = texts[start : start + EMBED_AT_ONCE]
                    found = await asyncio.gather(*(self._encoded(text) for text in some))
                for number, encoded in enumerate(found, start):
                    vectors.append(self._vector(encoded, number, dimensions))
                    tokens += encoded.tokens
        finally:
            self._embedding -= 1
        return vectors, tokens

    def _vector(self, encoded: Encoded, number: int, dimensions: int | None) -> bytes:
        where, window = f"input.{number}", self._encoder.window_tokens
        if encoded.tokens > window:
            raise ContextLengthExceeded(
                f"'{where}' has {encoded.tokens} tokens and this model reads {window}; split the text.", where
            )
        if encoded.vector is None:
            raise InvalidRequest(f"'{where}' cannot be encoded; it has to be text.", where)
        width = len(encoded.vector) // 4
        if dimensions not in (None, width):
            raise UnsupportedFeature(f"This model has {width} dimensions; leave out 'dimensions'.", "dimensions")
        return encoded.vector

    async def audit(self, tenant: str) -> dict[str, float | int]:
        """How often a tenant is answered wrongly, at most."""
        return self._store.audit(tenant)

    async def stats(self) -> dict[str, int]:
        """Counts since the start and what is held now; `encoded / batches` is the mean batch size."""
        names = ("encoded", "batches", "not_encodable")
        return {**self._store.stats(), **{name: self._counts[name] for name in names}}

    async def __del__(self) -> None:
        if (disk := getattr(self, "_disk", None)) is not None:
            self._disk = None
            await disk.close()

    async def check_health(self) -> None:
        """Serve restarts the replica when this raises."""
        began_s = self._batch_began_s
        if began_s is not None and time.monotonic() - began_s > STUCK_AFTER_S:
            raise ModelUnavailable("The encoder hangs in a batch; its replica has to be replaced.")

    async def _keep(self, key: CacheKey, answer: CachedAnswer, embedding: bytes | None) -> None:
        try:
            if embedding is None and key.scope:
                encoded = await self._encoded(key.text)
                embedding = encoded.vector if encoded.whole else None
            self._store.store(key, answer, embedding)
        except BaseException:
            self._store.release(key)
            raise

    async def _encoded(self, text: str) -> Encoded:
        """Serve closes a batch after its wait even while another runs, and the encoder would get crumbs one by one. So
        a text joins only when the encoder is free: what came while a batch ran is the next batch."""
        await self._idle.wait()
        encoded: Encoded = await self._encode(text)
        return encoded

    async def _encode_batch(self, texts: list[str]) -> list[Encoded]:
        self._idle.clear()
        self._batch_began_s = time.monotonic()
        try:
            encoded = await asyncio.get_running_loop().run_in_executor(self._thread, self._encode_each, texts)
        finally:
            took_ms = (time.monotonic() - self._batch_began_s) * 1000
            self._batch_began_s = None
            self._idle.set()
        self._counts.update(batches=1, encoded=len(texts), not_encodable=sum(not each.whole for each in encoded))
        return [replace(each, batch_ms=took_ms) for each in encoded]

    def _encode_each(self, texts: list[str]) -> list[Encoded]:
        """A text that cannot be encoded (a lone surrogate, say) has no vector; those beside it have theirs."""
        try:
            readings = self._encoder.read(texts)
            short = [text for text, reading in zip(texts, readings, strict=True) if reading.windows <= MAX_WINDOWS]
            rows = iter(self._encoder.encode(short) if short else ())
            vectors = [next(rows).astype("<f4").tobytes() if r.windows <= MAX_WINDOWS else None for r in readings]
            return [Encoded(v, r.tokens, r.whole) for v, r in zip(vectors, readings, strict=True)]
        except Exception:
            if len(texts) == 1:
                return [Encoded(None, 0, False)]
            return [encoded for text in texts for encoded in self._encode_each([text])]


class CacheHandle:
    """Fills `router.ports.CachePort` over a hop: which shard has a tenant is decided here."""

    def __init__(self, shards: Sequence[DeploymentHandle]) -> None:
        self._lookups = {shard.deployment_name: method(shard, "lookup") for shard in shards}
        self._releases = {shard.deployment_name: method(shard, "release") for shard in shards}
        self._audits = {shard.deployment_name: method(shard, "audit") for shard in shards}
        self._judges = [method(shard, "judge") for shard in shards]
        self._invalidations = [method(shard, "invalidate") for shard in shards]
        self._outboxes = {shard.deployment_name: _Outbox(method(shard, "store")) for shard in shards}
        self._embedders = itertools.cycle([method(shard, "embed") for shard in shards])

    async def lookup(self, key: CacheKey, terms: Terms = ANY_TERMS) -> Lookup:
        """Raises `SwitchyardError` when the shard is down or overloaded, which its caller takes for a miss."""
        found: Lookup = await call(self._lookups[self._shard(key.tenant)], key, terms)
        return found

    async def store(self, key: CacheKey, answer: CachedAnswer, embedding: bytes | None) -> bool:
        """Returns when the shard has the answer (True) or never will, and never fails; what came of it is counted.

        Leaving earlier does not stop it: what is on its way arrives.
        """
        return await self._outboxes[self._shard(key.tenant)].put((key, answer, embedding))

    async def release(self, key: CacheKey, claimant: str) -> None:
        """One that does not arrive costs whoever asks this next a look at a process that has nothing."""
        await self._asked(self._releases[self._shard(key.tenant)], key, claimant)

    async def _asked(self, method: DeploymentHandle, *args: Any) -> Any:
        """None where nothing comes."""
        with suppress(SwitchyardError, TimeoutError):
            async with asyncio.timeout(STORE_TIMEOUT_S):
                return await call(method, *args)

    async def embed(self, texts: Sequence[str], dimensions: int | None) -> tuple[list[bytes], int]:
        """See `SemanticCache.embed`. Every shard has the same encoder, so they take turns."""
        found: tuple[list[bytes], int] = await call(next(self._embedders), texts, dimensions)
        return found

    async def audit(self, tenant: str) -> dict[str, float | int]:
        """See `SemanticStore.audit`. Raises `SwitchyardError` when the shard is down or overloaded."""
        found: dict[str, float | int] = await call(self._audits[self._shard(tenant)], tenant)
        return found

    async def judge(self, org: str, answer_id: str, voice: str, score: float) -> str | None:
        """Asks all shards, since an answer's id does not say which has it; one that is down has lost it anyway."""
        asked = (self._asked(shard, org, answer_id, voice, score) for shard in self._judges)
        return next((exact for exact in await asyncio.gather(*asked) if exact is not None), None)

    async def invalidate(self, selection: Selection, dry_run: bool) -> Forgotten:
        """Of all shards, since namespaces of an organisation lie on several. Raises `SwitchyardError` when one of them
        is down: what the others have dropped stays dropped."""
        async with asyncio.timeout(STORE_TIMEOUT_S):
            return Forgotten.together(
                await asyncio.gather(*(call(shard, selection, dry_run) for shard in self._invalidations))
            )

    @property
    def stores_dropped(self) -> int:
        return sum(outbox.dropped for outbox in self._outboxes.values())

    @property
    def stores_failed(self) -> int:
        return sum(outbox.failed for outbox in self._outboxes.values())

    def _shard(self, tenant: str) -> str:
        return rendezvous(tenant, self._outboxes)


class _Outbox:
    """The answers on their way to one shard: one hop for all that came while the last one was under way."""

    def __init__(self, store: DeploymentHandle) -> None:
        self._store = store
        self._unsent: list[Storable] = []
        self._next: asyncio.Task[bool] | None = None
        self._sending: set[asyncio.Task[bool]] = set()
        self._order = asyncio.Lock()
        self.dropped = self.failed = 0

    async def put(self, item: Storable) -> bool:
        """Whether it arrived."""
        if len(self._unsent) >= MAX_UNSENT:
            self.dropped += 1
            return False
        self._unsent.append(item)
        if self._next is None:
            self._next = asyncio.create_task(self._send())
            self._sending.add(self._next)
            self._next.add_done_callback(self._sending.discard)
        return await asyncio.shield(self._next)

    async def _send(self) -> bool:
        """Whether they arrived. One that the shard could not keep had its claim ended there."""
        async with self._order:
            items, self._unsent, self._next = self._unsent, [], None
            try:
                async with asyncio.timeout(STORE_TIMEOUT_S):
                    self.failed += await call(self._store, items)
            except (SwitchyardError, TimeoutError):
                self.failed += len(items)
                return False
            return True


def rendezvous(tenant: str, shards: Sequence[str] | dict[str, Any]) -> str:
    """The shard that has `tenant`: the highest random weight (Thaler and Ravishankar 1998), so that of n shards a new
    one takes over 1/n of the tenants and the others stay where they are."""
    return max(
        shards, key=lambda shard: blake2b(f"{shard}\0{tenant}".encode(errors="surrogatepass"), digest_size=8).digest()
    )


def cache_deployments(topology: Topology, data_dir: str, encryption: SecretStr = NO_SECRET) -> list[Application]:
    """One for each shard, `cache_scale.max_replicas` in number; none where the cache is off. They keep their answers in
    `data_dir` where `cache_on_disk` says so, or, if that says nothing, where there is a key to encrypt them with."""
    if topology.semantic_cache != "deployment":
        return []
    shards = topology.cache_scale.max_replicas
    names = [NAME] if shards == 1 else [f"{NAME}:{shard}" for shard in range(shards)]
    on_disk = bool(encryption.get_secret_value()) if topology.cache_on_disk is None else topology.cache_on_disk
    folders = [str(Path(data_dir) / "cache" / name.replace(":", "-")) if on_disk else None for name in names]
    return [_shard_deployment(topology, *each, encryption) for each in zip(names, folders, strict=True)]


def _shard_deployment(topology: Topology, name: str, folder: str | None, encryption: SecretStr) -> Application:
    scale = topology.cache_scale
    gpus = scale.num_gpus or float(topology.encoder.device == "cuda")  # a share of one, where `cache_scale` says so
    bounds = serve.deployment(
        name=name,
        user_config={},
        # Exactly one: a second replica would hold another half of the answers.
        num_replicas=1,
        # Room for a few batches: what encodes, what waits to, and exact hits passing by.
        max_ongoing_requests=max(128, 4 * topology.encoder.max_batch),
        # Per caller. A lookup that waits longer than `cache_timeout_s` is a miss anyway: refused, it is one at once.
        max_queued_requests=256,
        # A dead replica is noticed by its callers at once; this finds one that hangs.
        health_check_period_s=5,
        health_check_timeout_s=10,
        # The longest call is a batch of long texts, about a second.
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=5,
        ray_actor_options={"num_cpus": scale.num_cpus, "num_gpus": gpus},
    )
    return bounds(SemanticCache).bind(topology.encoder, folder, encryption)
