"""`switchyard cache export` and `import`: stored answers in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx

from cluster.checks import StartError

PIECE_BYTES = 64 * 1024


class Export:
    """Whoever reads the file reads all of it, or what was there before."""

    def __init__(self, file: Path, org: str | None, namespace: str | None) -> None:
        given = {"org": org, "namespace": namespace}
        self._file, self._params = file, {name: value for name, value in given.items() if value is not None}

    def send(self, client: httpx.Client) -> httpx.Response:
        """What the cluster said when it refused, else what is in the file now. Raises `StartError`."""
        part, last = self._file.with_name(f".{self._file.name}.part"), b""
        try:
            with client.stream("GET", "/v1/cache/export", params=self._params) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    return answer
                # Nobody else's to read: there are questions and answers in it.
                with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
                    for piece in answer.iter_bytes(PIECE_BYTES):
                        out.write(piece)
                        last = (last + piece)[-PIECE_BYTES:]
            end = _told(last)
            if end.get("object") != "cache.export.end":
                raise StartError(f"the export broke off: {end.get('message', 'the cluster went away')}")
            part.replace(self._file)
            return httpx.Response(200, json={"object": "cache.export", "file": str(self._file), "count": end["count"]})
        except OSError as error:
            raise StartError(f"{self._file} cannot be written ({error.strerror})") from None
        finally:
            part.unlink(missing_ok=True)


class Import:
    def __init__(self, file: Path, org: str | None, dry_run: bool) -> None:
        self._file, self._params = file, {"dry_run": "true" if dry_run else "false"}
        if org is not None:
            self._params["org"] = org

    def send(self, client: httpx.Client) -> httpx.Response:
        """What the cluster said. Raises `StartError` where there is no such file."""
        try:
            with self._file.open("rb"):
                pass
        except OSError as error:
            raise StartError(f"{self._file} cannot be read ({error.strerror})") from None
        return client.post("/v1/cache/import", params=self._params, content=self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        with self._file.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece


def import_lines(told: dict[str, object]) -> Iterator[str]:
    """What came of the lines of a file."""
    would = "would be " if told["dry_run"] else ""
    names = {
        "expired": "whose time is over",
        "held": "that are there already",
        "forgotten": "that were forgotten since they were asked for",
        "refused": "that are never kept (incomplete, or to questions past the cache)",
        "not_served": "of models that are not served here",
        "invalid": "lines that are no answers",
    }
    yield f"{told['kept']} answers {would}kept"
    yield from (f"{told[name]} {what}" for name, what in names.items() if told[name])
    if told["complete"] is False:
        yield "the file is not whole: its end is missing"
    errors = told["errors"]
    assert isinstance(errors, list)
    yield from (f"line {error['line']}: {error['message']}" for error in errors)


def _told(last: bytes) -> dict[str, object]:
    """The last line of a file, as far as there is a whole one."""
    lines = last.rsplit(b"\n", 2)
    try:
        told = json.loads(lines[-2]) if len(lines) > 1 and not lines[-1] else {}
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
