"""The product's graph for its tests: vLLM's replica lets them look into its engine."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from ray.serve import Application

from deployments import app, llm_server


def build(args: dict[str, Any]) -> Application:
    with patch.object(llm_server, "REPLICA", "tests.serve.vllm_probe.Probe"):
        return app.build(args)
