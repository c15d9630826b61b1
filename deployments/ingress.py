"""The public door: one pipeline per replica, reached over HTTP and through Serve handles alike."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from deployments.archive import ArchiveHandle
from deployments.batcher_handle import BatcherHandle
from deployments.cache_handle import CacheHandle
from deployments.classifier import ClassifierHandle, InlineClassifier
from deployments.cloud import InlineCloud, cloud_embedders
from deployments.forgetting import Forgetting
from deployments.handle_door import HandleDoor
from deployments.hop import ask_each, call
from deployments.http_app import build_http_app
from deployments.ledger import LedgerHandle, journal_folder
from deployments.live_settings import LiveSettings
from deployments.metrics import Metrics, exposition, summed
from deployments.model import ModelHandle
from deployments.openai.batch_lines import answer_line
from deployments.part_metrics import PartMetrics, ingress_families, lost_responses, router_families
from deployments.peers import Peers
from deployments.provider_metrics import ProviderMetrics
from deployments.providers_api import Providers
from deployments.served import check_names, places_of
from deployments.upkeep import Upkeep
from models.catalog import ModelEntry
from models.errors import ModelUnavailable, NotFound, SwitchyardError
from router.accounting.budget import Budgets
from router.accounting.denials import Denials
from router.accounting.feedback import Feedback
from router.accounting.journal import Journal
from router.accounting.jwt_login import JwtLogin, keep_fresh
from router.accounting.registrar import Follower
from router.accounting.shipper import Shipper, take_in_orphans
from router.accounting.tenants import Tenants
from router.archive.lines import LineAnswer
from router.cloud import ProviderState
from router.collecting import Collector
from router.embeddings import Embedders, encoder_entry
from router.events import Principal
from router.invalidation import Forgotten, Selection
from router.pipeline import Backend, Pipeline, Stages
from router.ports import Followed
from router.settings import ClassifierSettings, CloudModelSettings, IngressSettings, KeySettings
from router.topology import Topology

READY_TIMEOUT_S = 2.0
RECEIPT_WAIT_S = 2.0
BROADCAST_TIMEOUT_S = 2.0
CATCH_UP_S = 1.0
NO_SECRET = SecretStr("")
SHIP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class BackendBinding:
    """A backend as the builder knows it: its deployment's handle and the models behind it."""

    handle: DeploymentHandle
    entries: tuple[ModelEntry, ...]


@serve.ingress()
class Ingress(HandleDoor):
    """One replica of the door. `bootstrap_key` is the operator's own key, as a digest; `pepper` is what the keys that
    administrators make are hashed with."""

    def __init__(
        self,
        topology: Topology,
        data_dir: str,
        bootstrap_key: KeySettings | None,
        backends: Mapping[str, BackendBinding],
        batcher: DeploymentHandle,
        ledger: DeploymentHandle,
        archive: DeploymentHandle,
        caches: Sequence[DeploymentHandle],
        classifier: DeploymentHandle | None,
        providers: Sequence[ProviderState] = (),
        inline: Sequence[InlineCloud] = (),
        pepper: SecretStr = NO_SECRET,
        jwt_key: SecretStr = NO_SECRET,
    ) -> None:
        self.topology, self.pepper = topology, pepper.get_secret_value()
        self._inline = {cloud.endpoint.name: cloud.open() for cloud in inline}
        own = {cloud.backend: self._inline[cloud.endpoint.name] for cloud in inline}
        asleep = frozenset(endpoint.name for endpoint in topology.cloud if endpoint.scale.min_replicas == 0)
        self.providers = Providers(providers, {name: bound.handle for name, bound in backends.items()}, asleep, own)
        self._settings = LiveSettings(IngressSettings, lambda settings: check_names(settings, topology, jwt_key))
        self.metrics = Metrics()
        self.ledger = LedgerHandle(ledger)
        self.archive = ArchiveHandle(archive)
        self._control = {"Batcher": batcher, "Ledger": ledger, "Archive": archive}
        if classifier is not None:
            self._control["ComplexityClassifier"] = classifier
        name = serve.get_replica_context().replica_id.unique_id
        self._peers = Peers(name)
        holder = f"ingress-{name}-{time.time_ns():x}"
        self._journals = journal_folder(data_dir)
        self.shipper = Shipper(Journal(self._journals, holder), self.ledger)
        self.denials = Denials(self.shipper.sink)
        self.follower = Follower(self.ledger)
        self.tenants = Tenants(
            (bootstrap_key,) if bootstrap_key else (),
            IngressSettings(),
            topology.auth,
            follower=self.follower,
            pepper=self.pepper,
            places=places_of(topology),
            make_login=lambda settings: JwtLogin(settings, jwt_key.get_secret_value()),
        )
        self.budgets = Budgets(holder, self.tenants, self.ledger.lease)
        self.batcher = BatcherHandle(batcher)
        self._shared_cache = CacheHandle(list(caches)) if caches else None
        self.forgetting = Forgetting(self._shared_cache, self._ask_each)
        encoder = encoder_entry(topology.encoder)
        self.embedders: Embedders = {encoder.name: (encoder, self._shared_cache)} if self._shared_cache else {}
        self._parts = PartMetrics(batcher, ledger, caches, archive)
        clouds = {name: bound.handle for name, bound in backends.items() if name.startswith("CloudModel:")}
        providers_by_name = {name.partition(":")[2]: handle for name, handle in clouds.items()}
        self.embedders |= cloud_embedders(topology.cloud, providers_by_name, self._inline)
        self._provider_metrics = ProviderMetrics(providers_by_name, self._everywhere if inline else None)
        self._inline_classifier = InlineClassifier(ClassifierSettings(), topology.heads() if classifier is None else {})
        bound = [Backend(name, ModelHandle(each.handle, name), each.entries) for name, each in backends.items()]
        near = [Backend(cloud.backend, own[cloud.backend], cloud.endpoint.models) for cloud in inline]
        self.pipeline = Pipeline(self._stages([*bound, *near], classifier), IngressSettings(), self.tenants)
        self._background: list[asyncio.Task[None]] = []

    def _stages(self, backends: Sequence[Backend], classifier: DeploymentHandle | None) -> Stages:
        return Stages(
            backends={backend.name: backend for backend in backends},
            classifier=ClassifierHandle(classifier) if classifier else self._inline_classifier,
            batcher=self.batcher,
            budgets=self.budgets,
            semantic_cache=self._shared_cache,
            sinks=[self.shipper.sink, self.metrics],
            peers=self._peers if self._shared_cache is not None else None,
            forget_older=self.forgetting.older,
            promoted=self.follower.directory.promoted,
            embed=self._shared_cache.embed if self._shared_cache is not None else None,
        )

    def reconfigure(self, config: dict[str, Any]) -> None:
        """New `user_config`, from now on."""
        if settings := self._settings.accept(config):
            self._inline_classifier.reconfigure(settings.classifier)
            for name, model in self._inline.items():
                model.reconfigure(settings.cloud.get(name, CloudModelSettings()).model_dump())
            self.pipeline.reconfigure(settings)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return build_http_app(self)

    async def batch_line(self, principal: Principal, endpoint: str, body: bytes) -> LineAnswer:
        """The answer to a line of a batch, of somebody whom the door has let in. For the Archive only."""
        return await answer_line(self, principal, endpoint, body)

    # ---- what operators ask ----------------------------------------------------------------------------------------

    @property
    def shared_cache(self) -> CacheHandle:
        """Raises `NotFound` where that is off."""
        if self._shared_cache is None:
            raise NotFound("There is no semantic cache in this cluster; set 'semantic_cache: deployment' in its args.")
        return self._shared_cache

    async def receipt(self, org: str, request_id: str) -> dict[str, Any]:
        """The receipt of a request of `org`, whichever replica served it. Raises `NotFound`.

        `request_id` is the header `x-switchyard-request-id` or the `id` of an answer, which contains it.
        """
        plain = re.sub(r"^((chatcmpl-|cmpl-|msg_)(?=req_)|resp_)", lambda m: "req_" * (m[0] == "resp_"), request_id)
        found = await self.ledger.receipt(org, plain, RECEIPT_WAIT_S)
        if found is None:
            raise NotFound(
                "No receipt with this id: give the 'id' of an answer of yours or its header x-switchyard-request-id; "
                "a request that still runs has none yet."
            )
        return found

    async def feedback(self, given: Feedback, work: str) -> None:
        """Keep what a caller says about an answer, and have every replica learn from it. work: see `Decision`."""
        await self.ledger.keep_feedback(given)
        await self.forgetting.judged(given)
        if given.cached_from or not given.model:
            return  # a replayed answer is judged as one; it says nothing about what the model does now
        self.pipeline.experience.note(given.org, work, given.model, given.score)
        await self._ask_all("learn", given.org, work, given.model, given.score)

    def learn(self, org: str, work: str, model: str, score: float) -> None:
        """Count an outcome for the strategies that learn; the replica that was told of it shares it."""
        self.pipeline.experience.hear(org, work, model, score)

    def metrics_text(self) -> str:
        """This replica's metrics in Prometheus' text format."""
        cache = self._shared_cache
        unsent = (cache.stores_dropped, cache.stores_failed) if cache else (0, 0)
        exact, backlog = self.pipeline.exact.stats(), self.shipper.backlog_bytes
        held = ingress_families(self.pipeline.running, exact, backlog, *unsent, self._settings.rejected)
        router, lost = router_families(self.pipeline), lost_responses(self.archive.responses_lost)
        return exposition([*self.metrics.families(), *held, *router, lost])

    async def inline_stats(self) -> dict[str, dict[str, dict[str, int]]]:
        """What `CloudModel.stats` says of each provider that runs in this replica, by its name."""
        return {name: await model.stats() for name, model in self._inline.items()}

    async def all_metrics(self) -> str:
        """The sum over all ingress replicas that answer, and what the control plane and the providers count."""
        replicas, *rest = await asyncio.gather(
            self._replicas_metrics(),
            self._parts.text(self._node_prices(), self._node_factors()),
            self._provider_metrics.text(),
        )
        return "".join((summed(replicas), *rest))

    def _node_prices(self) -> dict[str, float]:
        """Micro-USD an hour of a replica, by backend."""
        backends, prices = self.pipeline.stages.backends.values(), self.pipeline.prices
        found = {
            backend.name: prices.replica_microusd_per_hour(each.name)
            for backend in backends
            for each in backend.entries
        }
        return {name: price for name, price in found.items() if price is not None}

    def _node_factors(self) -> dict[str, float]:
        return {model: said["factor"] for model, said in self.pipeline.node_costs.explained().items()}

    async def _replicas_metrics(self) -> list[str]:
        """Without those that are going; only this one's when another hangs."""
        return await self._ask_all("metrics_text") or [self.metrics_text()]

    async def follow(self, leader: str, key: str, time_left_s: float, priority: int) -> AsyncIterator[Followed]:
        """An answer that this replica, the `leader`, has on its way, for another one. Raises `NotFound`."""
        if leader != self._peers.name:
            raise NotFound("The ingress that answered this has gone; ask again.")
        async with aclosing(self.pipeline.followed(key, time_left_s, priority)) as items:  # type: ignore[type-var]
            async for item in items:
                yield item

    def forget(self, exact: str, newest_id: str) -> None:
        """Drop this replica's own copy of an answer, unless it is the one with this id."""
        self.pipeline.exact.forget(exact, newest_id)

    async def invalidate(self, selection: Selection, exacts: Sequence[str] = ()) -> None:
        """See `Pipeline.forget`."""
        self.pipeline.forget(selection, exacts)

    async def invalidate_everywhere(self, selection: Selection, dry_run: bool) -> Forgotten:
        """See `Forgetting.everywhere`."""
        return await self.forgetting.everywhere(selection, dry_run)

    async def catch_up(self, version: int) -> bool:
        """Whether this replica knows, within a second, what administrators have done up to `version`."""
        return await self.follower.reached(version, CATCH_UP_S)

    async def catch_up_everywhere(self, version: int) -> None:
        """Returns once every replica that answers knows of it. One that hangs has had its second."""
        await self._ask_all("catch_up", version)

    async def _ask_all(self, method: str, *args: Any) -> list[Any]:
        return (await self._ask_each(method, *args))[0]

    async def _ask_each(self, method: str, *args: Any) -> tuple[list[Any], int]:
        return await ask_each(self._everywhere(), method, *args, timeout_s=BROADCAST_TIMEOUT_S)

    def _everywhere(self) -> DeploymentHandle:
        """All ingress replicas, this one among them."""
        here = serve.get_replica_context()
        return serve.get_deployment_handle(here.deployment, here.app_name)

    async def readiness(self) -> dict[str, str]:
        """`ok`, or what is wrong, by control-plane deployment."""

        async def check(name: str, handle: DeploymentHandle) -> tuple[str, str]:
            try:
                async with asyncio.timeout(READY_TIMEOUT_S):
                    await call(handle.check_health)
            except (SwitchyardError, TimeoutError) as error:
                return name, type(error).__name__
            return name, "ok"

        return dict(await asyncio.gather(*(check(*item) for item in self._control.items())))

    async def warnings(self) -> dict[str, str]:
        """What is done without although requests are answered, by what it is, and what to do about it."""
        found = self._inline_classifier.warning
        if (handle := self._control.get("ComplexityClassifier")) is not None:
            try:
                async with asyncio.timeout(READY_TIMEOUT_S):
                    found = await call(handle.warning)
            except (SwitchyardError, TimeoutError):
                found = ""  # that it does not answer is said among the parts
        return {"learned_classifier": found} if found else {}

    async def check_health(self) -> None:
        """Unhealthy when what runs beside the requests has stopped."""
        if any(task.done() for task in self._background):
            raise ModelUnavailable("The ingress no longer delivers its records; this replica is to be replaced.")

    async def startup(self) -> None:
        """Start what runs beside the requests. The HTTP app calls it once its event loop serves."""
        Collector().settled()
        self.batcher.start()
        await self._peers.announce()
        loop = asyncio.get_running_loop()
        upkeep = Upkeep(self.ledger, self.follower, lambda: self.pipeline, self.batcher)
        self._background = [
            loop.create_task(self.shipper.run()),
            loop.create_task(self.budgets.run()),
            loop.create_task(self.follower.run(self.tenants.forget)),
            loop.create_task(self.denials.run()),
            *(loop.create_task(job) for job in upkeep.jobs()),
            loop.create_task(keep_fresh(lambda: self.tenants.login)),
        ]
        self._taking_in = loop.create_task(self._take_in_orphans())

    async def _take_in_orphans(self) -> None:
        """Deliver what dead processes of this node left; the Ledger looks after its own node only."""
        with suppress(SwitchyardError):  # it comes with the next ingress that starts here
            await take_in_orphans(self._journals, self.ledger)

    async def shutdown(self) -> None:
        """Leave nothing behind: places and leases go back, records go to the ledger."""
        with suppress(SwitchyardError):
            await self.batcher.close()
            await self.budgets.close()
        await self.archive.close(SHIP_TIMEOUT_S)
        self.denials.flush()
        await self.shipper.close(SHIP_TIMEOUT_S)
        for task in self._background:
            task.cancel()
        for model in self._inline.values():
            await model.close()
