"""Organisations and keys that an administrator makes while the product runs, on both of its ingresses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from cluster import cli
from tests.serve.product import OPERATOR, Product, until, user
from tests.unit.test_alert_channels import receiving


def admin(product: Product, method: str, path: str, **body: Any) -> Any:
    answer = product.http(OPERATOR).request(method, f"/v1/admin/{path}", json=body or None)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


@contextmanager
def caller(product: Product, key: str) -> Iterator[httpx.Client]:
    """Without connections that stay: HAProxy sends each request to any of the ingresses."""
    headers = {"authorization": f"Bearer {key}", "connection": "close"}
    with httpx.Client(base_url=product.cluster.base_url, headers=headers, trust_env=False, timeout=60.0) as client:
        yield client


def test_a_key_works_on_every_ingress_until_it_is_revoked(product: Product) -> None:
    admin(product, "PUT", "orgs/initech")
    made = admin(product, "POST", "keys", org="initech", scopes=["infer", "usage"], models=["sim"])
    with caller(product, made["key"]) as client:
        for _ in range(8):
            body = {"model": "sim", "messages": user("hello"), "max_tokens": 4}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert {model["id"] for model in client.get("/v1/models").json()["data"]} == {"auto", "sim"}
        until(lambda: client.get("/v1/usage").json()["total"]["requests"] >= 1)  # the books are written behind
        began = time.monotonic()
        admin(product, "DELETE", f"keys/{made['id']}")
        told_s = time.monotonic() - began
        assert [client.get("/v1/models").status_code for _ in range(8)] == [401] * 8
    assert told_s < 5.0


def test_a_limit_holds_over_both_ingresses_and_is_shown(product: Product) -> None:
    admin(product, "PUT", "orgs/hooli")
    key = admin(product, "POST", "keys", org="hooli")["key"]
    admin(product, "POST", "policies", org="hooli", unit="requests", amount=5)
    with caller(product, key) as client:
        body = {"model": "sim", "messages": user("hello"), "max_tokens": 4, "switchyard": {"cache": "off"}}
        statuses = [client.post("/v1/chat/completions", json=body).status_code for _ in range(12)]
        assert (statuses.count(200), statuses.count(429)) == (5, 7)
        (row,) = client.get("/v1/budget").json()["data"]
        assert (row["limit"], row["left"], row["unit"]) == (5, 0, "requests")


def test_what_a_user_asked_is_forgotten_on_request(product: Product) -> None:
    admin(product, "PUT", "orgs/soylent")
    key = admin(product, "POST", "keys", org="soylent")["key"]
    with caller(product, key) as client:
        asked = {"model": "sim", "messages": user("who was I?"), "max_tokens": 4, "user": "ann"}
        receipt = f"/v1/receipts/{client.post('/v1/chat/completions', json=asked).json()['id']}"
        assert client.get(receipt).json()["user"] == "ann"
        told = admin(product, "POST", "erasures", org="soylent", user="ann")
        assert told["erased"]["cached_answers"] == 1 and told["replicas_missed"] == 0
        assert client.get(receipt).status_code == 404
        again = client.post("/v1/chat/completions", json=asked)
        assert again.headers["x-switchyard-cache"] == "miss"


def test_the_command_line_and_the_audit_log(product: Product, capsys: Any) -> None:
    where = ["--data-dir", product.cluster.data_dir]
    assert cli.main(["orgs", "put", "umbrella", *where]) == 0
    assert cli.main(["keys", "create", "--org", "umbrella", *where]) == 0
    shown = capsys.readouterr().out
    key = next(line for line in shown.splitlines() if line.startswith("sy-"))
    with caller(product, key) as client:
        assert client.get("/v1/usage").status_code == 403
    for _ in range(100):
        log = product.http(OPERATOR).get("/v1/audit?limit=1000").json()["data"]
        denied = [entry for entry in log if entry["act"] == "request.denied" and entry["org"] == "umbrella"]
        if denied:
            break
        time.sleep(0.1)
    assert denied[0]["target"] == "GET /v1/usage" and denied[0]["detail"]["status"] == 403
    assert [entry["act"] for entry in log if entry["org"] == "umbrella"][:2] == ["org.put", "key.create"]
    assert cli.main(["audit", "verify", *where]) == 0
    assert "all in their place" in capsys.readouterr().out
    assert key not in str(log)


def test_an_organisation_is_forgotten_from_the_command_line(
    product: Product, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--data-dir", product.cluster.data_dir]

    def switchyard(*words: str, code: int = 0) -> str:
        assert cli.main([*words, *where]) == code
        told = capsys.readouterr()
        return told.err if code else told.out

    switchyard("orgs", "put", "tyrell")
    shown = switchyard("keys", "create", "--org", "tyrell", "--user", "roy", "--scope", "infer", "--scope", "audit")
    key = next(line for line in shown.splitlines() if line.startswith("sy-"))
    with caller(product, key) as client:
        asked = {"model": "sim", "messages": user("how long do I live?"), "max_tokens": 4, "user": "roy"}
        receipt = f"/v1/receipts/{client.post('/v1/chat/completions', json=asked).json()['id']}"
        assert client.get(receipt).status_code == 200
        assert client.get("/v1/admin/compliance").status_code == 403
        with pytest.raises(SystemExit):
            cli.main(["erase", "--org", "tyrell", *where])
        assert client.get(receipt).status_code == 200  # it was not meant
        with monkeypatch.context() as environment:
            environment.setenv("SWITCHYARD_API_KEY", key)
            own = switchyard("audit", "verify")
            assert "all in their place" in own and int(own.split()[0]) in (2, 3)  # the refusal above may be on its way
            assert "admin" in switchyard("erase", "--org", "tyrell", "--yes", code=1)  # the scope that it has not
        told = switchyard("erase", "--org", "tyrell", "--yes")
        assert "1 requests" in told and "kept: the audit log" in told
        assert client.get(receipt).status_code == 401
    stored = switchyard("compliance")
    assert "audit log" in stored and "stored responses: questions and answers" in stored and "ledger.sqlite3" in stored
    log = switchyard("audit", "list", "--limit", "1000")
    assert "erase.org done" in log and "tyrell" in log
    head = switchyard("audit", "verify").split()[-1]
    switchyard("audit", "verify", "--head", head)
    assert "broken" in switchyard("audit", "verify", "--head", "0" * 64, code=1)


def test_a_budget_that_is_used_up_is_told_to_a_webhook(product: Product, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data-dir", product.cluster.data_dir]
    admin(product, "PUT", "orgs/vandelay")
    key = admin(product, "POST", "keys", org="vandelay", scopes=["infer", "usage"])["key"]
    admin(product, "POST", "policies", org="vandelay", unit="microusd", span="day", amount=10, hard=False)
    assert cli.main(["alerts", "test", *where]) == 1
    assert "no channel" in capsys.readouterr().err
    with receiving() as receiver, caller(product, key) as client:
        alerts = {"every_s": 1, "anomalies": False, "channels": [{"name": "ops", "url": f"{receiver.url}/hook"}]}
        with product.reconfigured("Ledger", alerts=alerts):
            assert cli.main(["alerts", "test", *where]) == 0
            asked = {"model": "claude", "messages": user("import or export?"), "max_tokens": 4}
            assert client.post("/v1/chat/completions", json=asked).status_code == 200

            def told(kind: str, org: str) -> list[dict[str, Any]]:
                return [body for body in receiver.bodies() if (body["kind"], body["org"]) == (kind, org)]

            (alert,) = until(lambda: told("budget", "vandelay"))
            assert (alert["severity"], alert["data"]["threshold"]) == ("critical", 1.0)
            until(lambda: told("test", OPERATOR))
            (mine,) = client.get("/v1/alerts").json()["data"]
            assert mine["title"] == alert["title"] and "deliveries" not in mine

            def listed() -> str:
                assert cli.main(["alerts", "list", "--limit", "5", *where]) == 0
                return capsys.readouterr().out

            until(lambda: listed().count("ops: sent") >= 2)
