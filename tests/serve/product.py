"""The running product as its users and operators see it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from cluster.runtime import APPLICATIONS, applications, rest
from cluster.state import Cluster

APP = "switchyard"
TENANTS = ("acme", "globex", "hurried", "poor", "confined")
OPERATOR = "default"


def key_of(org: str) -> str:
    return f"sy-test-{org}"


def user(text: str) -> list[Any]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def until(condition: Callable[[], Any], within_s: float = 60.0) -> Any:
    """What `condition` gives once that is true. It is asked less and less often: that is work for the cluster. How fast
    something is, another program on the machine may decide; only what never comes is a failure."""
    give_up_s, pause_s = time.monotonic() + within_s, 0.02
    while not (found := condition()):
        left_s = give_up_s - time.monotonic()
        assert left_s > 0, f"still waiting after {within_s} s"
        time.sleep(min(pause_s, left_s))
        pause_s = min(0.5, 1.5 * pause_s)
    return found


class Product:
    """Close it after use."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._open = ExitStack()
        self._http: dict[str, httpx.Client] = {}
        self._sdk: dict[str, OpenAI] = {}

    def close(self) -> None:
        self._open.close()

    def key(self, org: str) -> str:
        return self.cluster.api_key if org == OPERATOR else key_of(org)

    def http(self, org: str = "acme") -> httpx.Client:
        if org not in self._http:
            headers = {"Authorization": f"Bearer {self.key(org)}"}
            client = httpx.Client(base_url=self.cluster.base_url, headers=headers, trust_env=False, timeout=60.0)
            self._http[org] = self._open.enter_context(client)
        return self._http[org]

    def sdk(self, org: str = "acme") -> OpenAI:
        """OpenAI's own client. It retries nothing, so that every failure is seen."""
        if org not in self._sdk:
            client = OpenAI(base_url=f"{self.cluster.base_url}/v1", api_key=self.key(org), max_retries=0, timeout=60.0)
            self._sdk[org] = self._open.enter_context(client)
        return self._sdk[org]

    def chat(self, text: str, model: str = "sim", org: str = "acme", **body: Any) -> httpx.Response:
        body = {"model": model, "messages": user(text), **body}
        return self.http(org).post("/v1/chat/completions", json=body)

    def receipt(self, request_id: str, org: str = "acme") -> dict[str, Any]:
        answer = self.http(org).get(f"/v1/receipts/{request_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def usage(self, **groups: str) -> Iterator[dict[str, Any]]:
        """The rows of GET /v1/usage whose groups have these values, of the operator's own organisation."""
        asked = self.http(OPERATOR).get("/v1/usage", params={"group_by": ",".join(groups)})
        return (row for row in asked.json()["data"] if groups.items() <= row.items())

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of GET /metrics that have these labels."""
        families = text_string_to_metric_families(self.http().get("/metrics").text)
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    # ---- as Serve sees it ------------------------------------------------------------------------------------------

    def deployments(self) -> dict[str, dict[str, Any]]:
        deployments: dict[str, dict[str, Any]] = applications(self.cluster)[APP]["deployments"]
        return deployments

    def replicas(self, deployment: str) -> dict[str, int]:
        """Process ids by replica id, of those that run."""
        replicas = self.deployments()[deployment]["replicas"]
        return {replica["replica_id"]: replica["pid"] for replica in replicas if replica["state"] == "RUNNING"}

    def metrics_addresses(self) -> list[str]:
        """Where Ray exports the metrics of its processes, as `host:port`."""
        listed = Path(self.cluster.scratch_dir, "ray", "prom_metrics_service_discovery.json")
        return [address for group in json.loads(listed.read_text()) for address in group["targets"]]

    def kill_a_replica(self, deployment: str) -> str:
        """Its id."""
        replica_id, pid = next(iter(self.replicas(deployment).items()))
        os.kill(pid, signal.SIGKILL)
        return replica_id

    @contextmanager
    def reconfigured(self, deployment: str, **changes: Any) -> Iterator[None]:
        """With other values in the `user_config` of a deployment, as an operator sets them: by Serve's REST API."""
        before = applications(self.cluster)[APP]["deployed_app_config"]
        after = deepcopy(before)
        (settings,) = (each for each in after["deployments"] if each["name"] == deployment)
        settings["user_config"] |= changes
        try:
            self._deploy(after)
            yield
        finally:
            self._deploy(before)

    def _deploy(self, application: dict[str, Any]) -> None:
        with rest(self.cluster) as api:
            api.put(APPLICATIONS, json={"applications": [application]}).raise_for_status()

        def done() -> bool:
            described = applications(self.cluster)[APP]
            return described["status"] == "RUNNING" and described["deployed_app_config"] == application

        until(done)
