"""Answers that are forgotten, by all ingress replicas."""

from __future__ import annotations

import time

from tests.serve.product import OPERATOR, Product, until


def verdicts(product: Product, text: str, times: int = 6) -> set[str]:
    """Of some requests: the load balancer has the replicas take turns."""
    body = {"switchyard": {"tags": ["manual"]}}
    return {product.chat(text, **body).headers["x-switchyard-cache"] for _ in range(times)}


def test_a_forgotten_answer_is_gone_everywhere_within_a_second(product: Product) -> None:
    text = "Where is the manual kept?"
    verdicts(product, text)
    until(lambda: verdicts(product, text) == {"hit-exact"}, 10.0)
    body = {"org": "acme", "tag": "manual"}
    door = product.http(OPERATOR)
    assert door.post("/v1/cache/invalidate", json=body).json()["count"] == 1
    assert verdicts(product, text) == {"hit-exact"}
    began_s = time.monotonic()
    assert door.post("/v1/cache/invalidate", json=body | {"dry_run": False}).json()["count"] == 1
    assert time.monotonic() - began_s < 1.0
    body = {"switchyard": {"cache": "only-if-cached"}}
    assert {product.chat(text, **body).status_code for _ in range(6)} == {504}
    question = {"org": "acme", "question": "Where is that manual kept?", "similarity": 0.8}
    verdicts(product, text)
    until(lambda: door.post("/v1/cache/invalidate", json=question).json()["count"] == 1, 5.0)
    assert door.post("/v1/cache/invalidate", json=question | {"dry_run": False}).json()["count"] == 1
    assert {product.chat(text, **body).status_code for _ in range(6)} == {504}
    entries = door.get("/v1/audit", params={"limit": 1000}).json()["data"]
    assert sum(entry["act"] == "cache.invalidate" for entry in entries) == 2


def test_an_answer_that_a_caller_finds_bad_goes_everywhere(product: Product) -> None:
    text = "Which answer is no good?"
    verdicts(product, text)
    until(lambda: verdicts(product, text) == {"hit-exact"}, 10.0)
    replayed = product.chat(text).headers["x-switchyard-request-id"]
    told = product.http().post("/v1/feedback", json={"request_id": replayed, "label": "bad"})
    assert told.status_code == 200, told.text
    body = {"switchyard": {"cache": "only-if-cached"}}
    assert {product.chat(text, **body).status_code for _ in range(6)} == {504}


def test_a_shard_that_was_killed_has_its_answers_again(product: Product) -> None:
    assert product.chat("Who still knows this after a restart?").status_code == 200
    time.sleep(0.5)  # what is stored later than that may be lost
    killed = product.kill_a_replica("SemanticCache")
    until(lambda: set(product.replicas("SemanticCache")) - {killed}, 60.0)
    body = {"switchyard": {"cache": "only-if-cached"}}
    # In another spelling, which no ingress has in a cache of its own.
    until(lambda: product.chat("WHO still knows this after a restart", **body).status_code == 200, 60.0)
    again = product.chat("Please: who still knows THIS after a restart?", **body)
    assert again.headers["x-switchyard-cache"] == "hit-semantic"
