"""`SemanticCache`: answers shared by all ingress replicas, found by the very question or by a similar one.

A shard is one deployment of one replica, since an index has one owner; the caller picks it by the rendezvous hash of
the tenant, which moves no tenant when replicas restart. It is not placed in the ingress: each replica of that would
have an index of its own, and torch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from ray import serve
from ray.serve import Application

from deployments.cache_disk import CacheDisk
from deployments.cache_handle import Storable, rendezvous
from deployments.cache_outside import CacheOutside
from deployments.cache_warm_up import warm_up
from deployments.live_settings import LiveSettings
from models.encoder import MAX_WINDOWS, Encoder
from models.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelUnavailable,
    Overloaded,
    UnsupportedFeature,
)
from router.cache_transfer import TakenIn
from router.collecting import Collector
from router.invalidation import Forgotten, Match, Selection
from router.outside import OutsideLog, open_store
from router.ports import ANY_TERMS, CachedAnswer, CacheKey, Embedded, Lookup, Terms
from router.sealing import Sealer
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings
from router.topology import Encoder as EncoderPlace
from router.topology import Topology, WarmUp

NAME = "SemanticCache"
NO_SECRET = SecretStr("")
logger = logging.getLogger("ray.serve")
STUCK_AFTER_S = 60.0
"""A batch takes milliseconds; one this old has lost its thread, and so has every request behind it."""

EMBED_AT_ONCE = 8
"""Texts of one caller's list that go into a batch, so that lookups find a place beside them."""

INVALIDATED_AT_ONCE = 250
"""Entries, between which lookups get their turn."""

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


@dataclass(frozen=True, slots=True)
class Part:
    """The tenants that the shard `name`, one of `names`, has."""

    name: str = NAME
    names: tuple[str, ...] = (NAME,)

    def has(self, tenant: str) -> bool:
        return rendezvous(tenant, self.names) == self.name


class SemanticCache:
    """The deployment: encodes in dynamic batches off the event loop, then searches. Its `user_config` is
    `CacheSettings`; without one the defaults hold. Raises `ModelUnavailable` where the encoder cannot be loaded."""

    def __init__(
        self,
        encoder: EncoderPlace,
        folder: str | None = None,
        encryption: SecretStr = NO_SECRET,
        store_url: SecretStr = NO_SECRET,
        part: Part = Part(),
        warm_up: tuple[WarmUp, ...] = (),
    ) -> None:
        """Where its answers are besides: in a store that all shards share, or on disk in `folder`, or nowhere.
        encryption: keys, as `Sealer.of` takes them. warm_up: what it takes in where there are none."""
        # Before the store's first index: onnxruntime crashes when it is loaded after usearch.
        self._encoder = Encoder(encoder.source, encoder.device, precision=encoder.precision)
        self._collector = Collector()
        self._settings = LiveSettings(CacheSettings)
        self._store = SemanticStore(CacheSettings())
        self._store_url, self._part, self._files = store_url.get_secret_value(), part, warm_up
        self._warming: asyncio.Task[None] | None = None
        self._folder, self._sealer = folder, Sealer.of(encryption.get_secret_value())
        self._disk: CacheDisk | CacheOutside | None = None
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
        if self._disk is None:  # Serve calls this before it sends the first request
            self._disk = self._opened()
        if self._warming is None:
            self._warming = asyncio.create_task(self._warmed())

    def _opened(self) -> CacheDisk | CacheOutside | None:
        if self._store_url:
            log = OutsideLog(open_store(self._store_url), self._sealer, self._encoder.identity)
            return CacheOutside(self._store, log, self._part.has, self._vector_of)
        if self._folder is None:
            return None
        return CacheDisk(self._store, Path(self._folder), self._sealer, self._encoder.identity)

    async def _warmed(self) -> None:
        all_known = await self._disk.all_known() if self._disk is not None else True
        self._collector.grown(self._store.count)
        if self._store.count or not self._files:
            return
        if not all_known:
            logger.warning(
                "no answers were taken in by 'cache_warm_up': a part of what was written down cannot be read, and may "
                "say that they were forgotten; import them (docs/cache.md)"
            )
            return
        await warm_up(self._files, self._part.has, self.take_in)

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
        matches: list[Match] = []
        for match in self._store.invalidating(selection, embedding, dry_run):
            matches.append(match)
            if len(matches) % INVALIDATED_AT_ONCE == 0:
                await asyncio.sleep(0)
        found = Forgotten.of(matches, dry_run)
        if self._disk is not None and not dry_run:
            await self._disk.forgotten(selection, embedding)  # before anybody is told that it is gone
        return found

    async def listed(self, selection: Selection) -> bytes:
        """The numbers of the answers that are meant (64 bits each), for `shown`."""
        if self._disk is not None:
            await self._disk.restored()
        numbers = array("Q")
        for number in self._store.meant(selection):
            numbers.append(number)
            if len(numbers) % INVALIDATED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return numbers.tobytes()

    async def shown(self, selection: Selection, numbers: bytes) -> list[tuple[CacheKey, CachedAnswer]]:
        """Those of these that are still there, and meant: another answer may have the number by now."""
        records = self._store.records(array("Q", numbers))
        return [(r.key, r.answer) for r in records if selection.means(r.key.tenant, r.answer)]

    async def take_in(self, answers: Sequence[tuple[CacheKey, CachedAnswer]], dry_run: bool) -> list[TakenIn]:
        """What came of answers that were made elsewhere, or would come of them."""
        if self._disk is not None:
            await self._disk.restored()  # an older one that is read later would take the place of one of these
        results: list[TakenIn] = []
        for start in range(0, len(answers), EMBED_AT_ONCE):
            async with self._turn:
                some = answers[start : start + EMBED_AT_ONCE]
                results += await asyncio.gather(*(self._take_in(*each, dry_run) for each in some))
        return results

    async def _take_in(self, key: CacheKey, answer: CachedAnswer, dry_run: bool) -> TakenIn:
        told = self._store.take_in(key, answer, None, dry_run=True)
        if dry_run or told != "kept":
            return told
        return self._store.take_in(key, answer, await self._vector_of(key.text) if key.scope else None)

    async def _vector_of(self, text: str) -> bytes | None:
        """None where a vector would not stand for all of it."""
        encoded = await self._encoded(text)
        return encoded.vector if encoded.whole else None

    async def embed(self, texts: Sequence[str], dimensions: int | None) -> Embedded:
        """The vectors of `texts`, of unit length.

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
        return Embedded(vectors, tokens, self._encoder.identity)

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

    async def stats(self) -> dict[str, float]:
        """Counts since the start and what is held now; `encoded / batches` is the mean batch size."""
        names = ("encoded", "batches", "not_encodable")
        return {**self._store.stats(), **{name: self._counts[name] for name in names}}

    async def __del__(self) -> None:
        if (warming := getattr(self, "_warming", None)) is not None:
            warming.cancel()
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
                embedding = await self._vector_of(key.text)
            self._store.store(key, answer, embedding)
            self._collector.grown(self._store.count)
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


def cache_deployments(
    topology: Topology, data_dir: str, encryption: SecretStr = NO_SECRET, store_url: SecretStr = NO_SECRET
) -> list[Application]:
    """One for each shard, `cache_scale.max_replicas` in number; none where the cache is off. They keep their answers in
    the store at `store_url`, if there is one, else in `data_dir` where `cache_on_disk` says so, or, if that says
    nothing, where there is a key to encrypt them with."""
    if topology.semantic_cache != "deployment":
        return []
    shards = topology.cache_scale.max_replicas
    names = (NAME,) if shards == 1 else tuple(f"{NAME}:{shard}" for shard in range(shards))
    on_disk = bool(encryption.get_secret_value()) if topology.cache_on_disk is None else topology.cache_on_disk
    on_disk &= not store_url.get_secret_value()
    folders = [str(Path(data_dir) / "cache" / name.replace(":", "-")) if on_disk else None for name in names]
    return [
        _shard_deployment(topology, Part(name, names), folder, encryption, store_url)
        for name, folder in zip(names, folders, strict=True)
    ]


def _shard_deployment(
    topology: Topology, part: Part, folder: str | None, encryption: SecretStr, store_url: SecretStr
) -> Application:
    scale = topology.cache_scale
    gpus = scale.num_gpus or float(topology.encoder.device == "cuda")  # a share of one, where `cache_scale` says so
    bounds = serve.deployment(
        name=part.name,
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
    return bounds(SemanticCache).bind(topology.encoder, folder, encryption, store_url, part, topology.cache_warm_up)
