from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from cluster import cli


class Door(BaseHTTPRequestHandler):
    asked: ClassVar[list[tuple[str, str, dict[str, Any]]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.path, self.headers["authorization"], body))
        bad = body.get("switchyard", {}).get("strategy") == "no-such"
        told = json.dumps({"error": "no"} if bad else {"decision": {"model": "small"}}).encode()
        self.send_response(400 if bad else 200)
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: object) -> None: ...


def test_it_prints_what_the_route_door_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = HTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    here = SimpleNamespace(base_url=f"http://127.0.0.1:{server.server_port}", api_key="sy-key")
    monkeypatch.setattr(cli, "_running_cluster", lambda _: here)
    try:
        assert cli.main(["route", "How many?", "--strategy", "learned"]) == 0
        assert json.loads(capsys.readouterr().out)["decision"]["model"] == "small"
        assert cli.main(["route", "How many?", "--strategy", "no-such"]) == 1
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    path, key, body = Door.asked[0]
    assert (path, key, body["switchyard"]) == ("/v1/route", "Bearer sy-key", {"strategy": "learned"})
