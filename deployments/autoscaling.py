"""How many replicas a model gets: Serve's own policy, told of the requests that wait in the Batcher.

Serve scales on the requests that its handles hold. The Batcher lets no more of them through than the replicas have
places, so by itself Serve would never see a reason to grow. The Batcher therefore reports its queue to the controller
as one more handle of the model would, and Serve's default policy computes

    replicas = ceil((waiting in the Batcher + held by handles) / places per replica)

with Serve's bounds, delays, start from zero and clean-up of reporters that died. Nothing has to be set in
serve_config.yaml, and deployments without a queue in the Batcher scale as always.

Two things here have no public API in Ray 2.60 (`tests/deployments/test_batcher.py` fails when they change): the report,
and the long poll by which routers (and `ray.serve.experimental.capacity_queue`) learn which replicas run. The public
`serve.status()` would cost the controller a full description of the cluster every second and be a second late.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
from ray import serve
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    DeploymentTargetInfo,
    HandleMetricReport,
    TimeStampedValue,
)
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve._private.long_poll import LongPollClient, LongPollNamespace
from ray.serve.config import AutoscalingConfig

from router.topology import Scale


def autoscaling(scale: Scale, places: int) -> AutoscalingConfig:
    """Serve's configuration for a deployment whose replicas run `places` requests at a time each."""
    with warnings.catch_warnings():
        # Ray 2.60 announces environment variables in place of metrics_interval_s, but does not read them yet; without
        # it a handle reports every 10 s and scaling lags by as much.
        warnings.filterwarnings("ignore", message=".*metrics_interval_s", category=DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=scale.min_replicas,
            max_replicas=scale.max_replicas,
            upscale_delay_s=scale.upscale_delay_s,
            downscale_delay_s=scale.downscale_delay_s,
            target_ongoing_requests=places,
            metrics_interval_s=1.0,
            # The delays above damp already; averaging over a long window would only add to them.
            look_back_period_s=2.0,
        )


class ControllerLink:
    """The Batcher's line to Serve's controller. Make it on the event loop of a Serve replica.

    on_replicas is called with a deployment's name and how many of its replicas run: at once, and within milliseconds
    of the controller's own view whenever that changes (a crashed replica counts until the controller has noticed).
    """

    def __init__(self, deployments: Iterable[str], on_replicas: Callable[[str, int], None]) -> None:
        app = serve.get_replica_context().app_name
        self._ids = {name: DeploymentID(name, app) for name in deployments}
        self._actor_id = ray.get_runtime_context().get_actor_id()
        self._controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)

        def listener(name: str) -> Callable[[DeploymentTargetInfo], None]:
            return lambda targets: on_replicas(name, len(targets.running_replicas))

        listeners: dict[Any, Any] = {
            (LongPollNamespace.DEPLOYMENT_TARGETS, key): listener(name) for name, key in self._ids.items()
        }
        self._watch = LongPollClient(
            self._controller,
            listeners,
            asyncio.get_running_loop(),
            f"Batcher:{self._actor_id}",
        )

    @property
    def alive(self) -> bool:
        """False when the controller's changes do not arrive any more."""
        return self._watch.is_running

    def report(self, queued: Mapping[str, int]) -> None:
        """Tell the autoscaler how many requests wait for each deployment; other names in `queued` are left out. Returns
        at once; a lost report is not missed if the next comes within 10 s. One sample stands for "now", which also
        narrows Serve's window to that."""
        now_unix_s = time.time()
        for name, deployment_id in self._ids.items():
            self._controller.record_autoscaling_metrics_from_handle.remote(
                HandleMetricReport(
                    deployment_id=deployment_id,
                    handle_id=f"Batcher:{self._actor_id}",
                    actor_id=self._actor_id,
                    handle_source=DeploymentHandleSource.REPLICA,
                    queued_requests=[TimeStampedValue(now_unix_s, queued.get(name, 0))],
                    metrics={},
                    timestamp=now_unix_s,
                )
            )
