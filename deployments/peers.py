"""From one ingress replica to another one that is named: how an answer is read along that is on its way over there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.hop import method, stream
from router.ports import Followed


class Peers:
    """Fills `router.ports.PeersPort`. `name` is this replica's own id.

    A handle chooses among replicas by itself, and Serve refuses a router of one's own for the deployment behind its
    HTTP door. What it does do is to send a request with a `multiplexed_model_id` to the replica that has the model of
    that name. So each replica says that it has one, of its own name. A call for one that has gone comes to another
    replica, whose `Ingress.follow` sees that it is not meant.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._follow: DeploymentHandle | None = None

    async def announce(self) -> None:
        """Have the others find this replica by its name: within a second or so."""
        await self._model(self.name)

    @serve.multiplexed(max_num_models_per_replica=1)
    async def _model(self, name: str) -> str:
        return name

    async def follow(self, leader: str, key: str, time_left_s: float, priority: int) -> AsyncIterator[Followed]:
        if self._follow is None:
            here = serve.get_replica_context()
            self._follow = method(serve.get_deployment_handle(here.deployment, here.app_name), "follow", stream=True)
        named = self._follow.options(multiplexed_model_id=leader)
        async with aclosing(stream(named, leader, key, time_left_s, priority)) as items:  # type: ignore[type-var]
            async for item in items:
                yield item
