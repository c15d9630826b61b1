"""The chain of the audit log: each entry's hash takes in the one before it, so nothing can be changed, removed or put
between unseen. Whoever notes the newest hash elsewhere also sees when the end was cut off."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from router.events import AuditEntry

GENESIS = "0" * 64
"""What stands for the hash before the first entry."""


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An entry as it is kept. `body` is its JSON, with its `sequence` in it: the text that the hash is of."""

    sequence: int
    entry_id: str
    org: str
    at_unix_ms: int
    body: str
    hash: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of a whole chain: how many entries hold and the newest hash, of one organisation's or of all; `broken_at` is the
    first that does not, of all."""

    entries: int
    head: str
    broken_at: int | None = None
    reason: str = ""


def chained(entry: AuditEntry | dict[str, Any], sequence: int, before: str) -> AuditRow:
    """The row after the one with the hash `before`. An entry out of a journal comes as a dict."""
    fields = entry if isinstance(entry, dict) else asdict(entry)
    shown = {"sequence": sequence, **{name: value for name, value in fields.items() if name != "kind"}}
    body = json.dumps(shown, separators=(",", ":"), sort_keys=True)
    return AuditRow(sequence, fields["entry_id"], fields["org"], fields["at_unix_ms"], body, digest(before, body))


def digest(before: str, body: str) -> str:
    return hashlib.sha256(f"{before}\n{body}".encode()).hexdigest()


def verify(rows: Iterable[AuditRow], expected_head: str | None = None, org: str | None = None) -> Verdict:
    """Whether `rows`, oldest first, are one unbroken chain from the first entry on.

    expected_head: a hash that was noted earlier; it has to be that of some entry. org: whose entries are counted; how
    many others have is not for it to know.
    """
    head, last, seen = GENESIS, 0, expected_head is None
    entries, newest = 0, GENESIS
    for row in rows:
        if row.sequence != last + 1:
            return Verdict(entries, newest, last + 1, "the entry is missing")
        if digest(head, row.body) != row.hash:
            return Verdict(entries, newest, row.sequence, "the entry was changed, or one before it")
        inside = json.loads(row.body)
        if (inside["sequence"], inside["org"], inside["at_unix_ms"], inside["entry_id"]) != (
            *(row.sequence, row.org, row.at_unix_ms),
            row.entry_id,
        ):
            return Verdict(entries, newest, row.sequence, "the entry's columns are not those of its body")
        head, last = row.hash, row.sequence
        if org in (None, row.org):
            entries, newest = entries + 1, row.hash
        seen = seen or head == expected_head
    if not seen:
        reason = "the expected hash is not in the log: its end was cut off, or it is another"
        return Verdict(entries, newest, last + 1, reason)
    return Verdict(entries, newest)
