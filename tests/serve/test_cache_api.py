"""Answers that are forgotten by all ingress replicas, taken to a file and brought from one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx

from cluster.cache_command import Export, Import
from tests.serve.product import OPERATOR, Product, until


def verdicts(product: Product, text: str, times: int = 6) -> set[str]:
    """Of some requests: the load balancer has the replicas take turns."""
    body = {"switchyard": {"tags": ["manual"]}}
    return {product.chat(text, **body).headers["x-switchyard-cache"] for _ in range(times)}


def test_a_forgotten_answer_is_gone_everywhere_within_five_seconds(product: Product) -> None:
    text = "Where is the manual kept?"
    verdicts(product, text)
    until(lambda: verdicts(product, text) == {"hit-exact"})
    body = {"org": "acme", "tag": "manual"}
    door = product.http(OPERATOR)
    assert door.post("/v1/cache/invalidate", json=body).json()["count"] == 1
    assert verdicts(product, text) == {"hit-exact"}
    began_s = time.monotonic()
    assert door.post("/v1/cache/invalidate", json=body | {"dry_run": False}).json()["count"] == 1
    took_s = time.monotonic() - began_s
    print(f"\nforgotten by a shard and two ingress replicas in {took_s * 1000:.0f} ms")
    assert took_s < 5.0  # far above what it takes, for a busy machine
    body = {"switchyard": {"cache": "only-if-cached"}}
    assert {product.chat(text, **body).status_code for _ in range(6)} == {504}
    question = {"org": "acme", "question": "Where is that manual kept?", "similarity": 0.8}
    verdicts(product, text)
    until(lambda: door.post("/v1/cache/invalidate", json=question).json()["count"] == 1)
    assert door.post("/v1/cache/invalidate", json=question | {"dry_run": False}).json()["count"] == 1
    assert {product.chat(text, **body).status_code for _ in range(6)} == {504}

    def acts() -> int:
        entries = door.get("/v1/audit", params={"limit": 1000}).json()["data"]
        return sum(entry["act"] == "cache.invalidate" for entry in entries)

    until(lambda: acts() == 2)  # they are on their way to the books


def test_an_answer_that_a_caller_finds_bad_goes_everywhere(product: Product) -> None:
    text = "Which answer is no good?"
    verdicts(product, text)
    until(lambda: verdicts(product, text) == {"hit-exact"})
    replayed = product.chat(text).headers["x-switchyard-request-id"]
    told = product.http().post("/v1/feedback", json={"request_id": replayed, "label": "bad"})
    assert told.status_code == 200, told.text
    body = {"switchyard": {"cache": "only-if-cached"}}
    assert {product.chat(text, **body).status_code for _ in range(6)} == {504}


def test_a_shard_that_was_killed_has_its_answers_again(product: Product) -> None:
    assert product.chat("Who still knows this after a restart?").status_code == 200
    time.sleep(0.5)  # what is stored later than that may be lost
    killed = product.kill_a_replica("SemanticCache")
    until(lambda: set(product.replicas("SemanticCache")) - {killed})
    body = {"switchyard": {"cache": "only-if-cached"}}
    # In another spelling, which no ingress has in a cache of its own.
    until(lambda: product.chat("WHO still knows this after a restart", **body).status_code == 200)
    again = product.chat("Please: who still knows THIS after a restart?", **body)
    assert again.headers["x-switchyard-cache"] == "hit-semantic"


def test_answers_are_taken_to_a_file_and_brought_from_one(product: Product, tmp_path: Path) -> None:
    door, file, text = product.http(OPERATOR), tmp_path / "answers.jsonl", "Which shelf has the atlas?"
    moved = {"namespace": "moved"}

    def stored(text: str) -> httpx.Response:
        return product.chat(text, switchyard={**moved, "cache": "only-if-cached"})

    def brought(*lines: dict[str, Any]) -> dict[str, Any]:
        file.write_text("\n".join(map(json.dumps, lines)))
        told = Import(file, "acme", False).send(door)
        assert told.status_code == 200, told.text
        return told.json()

    said = product.chat(text, switchyard=moved).json()["choices"]
    until(lambda: stored(text).status_code == 200)
    assert Export(file, "acme", "moved").send(door).json()["count"] == 1
    head, answer, end = map(json.loads, file.read_text().splitlines())
    whole = {"org": "acme", "namespace": "moved", "dry_run": False}
    assert door.post("/v1/cache/invalidate", json=whole).json()["count"] == 1
    assert stored(text).status_code == 504
    assert brought(head, answer, end)["forgotten"] == 1  # an old file does not bring it back
    answer["answer"] |= {"created_at_unix_s": time.time(), "opened_at_unix_s": time.time()}
    told = brought(head, answer, end)
    assert (told["kept"], told["complete"], told["errors"]) == (1, True, [])
    again = stored("Please, which shelf has the ATLAS?")
    assert again.headers["x-switchyard-cache"] == "hit-semantic" and again.json()["choices"] == said
    body = {"model": "sim", "messages": [{"role": "user", "content": "When is the library open?"}], "switchyard": moved}
    choices = [{"message": {"content": "From nine to five."}, "finish_reason": "stop"}]
    assert brought({"request": body, "response": {"model": "sim", "choices": choices}})["kept"] == 1
    known = stored("When is the library open?")
    assert known.headers["x-switchyard-cache"] == "hit-exact"
    assert known.json()["choices"][0]["message"]["content"] == "From nine to five."
    other = {"switchyard": {**moved, "cache": "only-if-cached"}}
    assert product.chat("When is the library open?", org="globex", **other).status_code == 504

    def acts(name: str) -> int:
        return sum(entry["act"] == name for entry in door.get("/v1/audit", params={"limit": 1000}).json()["data"])

    until(lambda: (acts("cache.export"), acts("cache.import")) == (1, 3))
    assert product.http("globex").get("/v1/cache/export", params={"org": "acme"}).status_code == 403
