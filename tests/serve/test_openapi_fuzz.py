"""Bodies and parameters that schemathesis makes up from our own OpenAPI document."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.serve.product import Product, key_of

# What a made-up `deadline_s` asks for is 504, and `only-if-cached` too.
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""


def test_nothing_that_is_sent_is_a_fault_of_ours(product: Product, tmp_path: Path) -> None:
    """With a key that reaches the simulated model only, so that what is understood is also answered at once.

    As a program: its pytest plugin does not work with the pytest of these tests.
    """
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{product.cluster.base_url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {key_of('confined')}", "--request-timeout", "30"]
    command += ["--phases", "fuzzing", "--max-examples", "3", "--max-time", "8", "--warnings", "off"]
    command += ["--checks", "not_a_server_error,content_type_conformance,response_schema_conformance"]
    command += ["--suppress-health-check", "all", "--no-color"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "Test cases:" in done.stdout
