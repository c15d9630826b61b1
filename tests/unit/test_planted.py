"""Planted keys, prompts and answers are searched for in everything that is kept, counted or logged."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from deployments.metrics import Metrics, exposition
from router.accounting.journal import Journal
from tests.unit.test_admin_api import Cluster, cluster
from tests.unit.test_http_app import open_door
from tests.unit.test_pipeline import make_world

__all__ = ["cluster"]

PROMPT, WRONG_KEY = "the launch code is swordfish", "sy-planted-and-wrong"


def everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


async def test_neither_journal_nor_books_metrics_logs_or_errors_have_them(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    one, *_ = cluster
    made = await one.done("POST", "/v1/admin/keys", org="acme")
    world = make_world()
    door, journal, metrics = open_door(world), Journal(tmp_path / "planted", "j"), Metrics()
    world.pipeline.tenants = door.ingress.tenants = one.tenants
    world.pipeline.stages.sinks += [journal.append, metrics]
    errors = []
    for key in (made["key"], WRONG_KEY):
        for change in ({}, {"stream": True}, {"temperature": PROMPT}, {"model": "never"}, {"user": "ann"}, {"n": 40}):
            body = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8, **change}
            headers = {"authorization": f"Bearer {key}"}
            answer = await door.client.post("/v1/chat/completions", json=body, headers=headers)
            errors += [answer.text] if answer.status_code >= 400 else []
    text = (await door.chat("hello there", key=made["key"])).json()
    said = str(text.get("choices", [{}])[0].get("message", {}).get("content") or "no answer")[:40]
    await one.ask("GET", "/v1/usage", made["key"])
    await cluster.audit()
    await door.client.aclose()
    kept = everything_in(tmp_path) + everything_in(cluster.folder)
    told = "\n".join([exposition(list(metrics.families())), caplog.text, *errors]).encode()
    assert b"acme" in kept and len(errors) > 6
    for planted in (made["key"], WRONG_KEY, "swordfish", said):
        assert planted.encode() not in kept + told, planted
    journal.close()
