"""Bodies and parameters that schemathesis makes up from our own OpenAPI document."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from tests.serve.product import Product, key_of


@pytest.fixture(scope="session")
def document(product: Product) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{product.cluster.base_url}/openapi.json")


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_that_is_sent_is_a_fault_of_ours(case: schemathesis.Case) -> None:
    """With a key that reaches the simulated model only, so that what is understood is also answered at once."""
    case.call_and_validate(headers={"Authorization": f"Bearer {key_of('confined')}"}, timeout=30)
