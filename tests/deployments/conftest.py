"""Single deployments on a Ray of this process, reached by their handles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from ray import serve


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    """For tests of single deployments by their handles. Without an HTTP door, which would take port 8000."""
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(proxy_location="Disabled")
    yield
    serve.shutdown()
    ray.shutdown()
