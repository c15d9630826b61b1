"""Single deployments on a Ray of this process, reached by their handles."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest
import ray
from ray import serve

from cluster.ray_process import IMPATIENT


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    """For tests of single deployments by their handles. Without an HTTP door, which would take port 8000."""
    for tries_left in (2, 1, 0):
        others = set(psutil.Process().children(recursive=True))
        try:
            ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, configure_logging=False)
            break
        except Exception as error:  # what Ray raises there is nothing more special
            for left in set(psutil.Process().children(recursive=True)) - others:
                left.kill()
            if IMPATIENT not in str(error) or not tries_left:
                raise
    serve.start(proxy_location="Disabled")
    yield
    serve.shutdown()
    ray.shutdown()
