"""`switchyard orgs`, `teams`, `keys`, `policies`, `audit`, `cache`: the admin API of a running cluster from a shell."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from cluster.cache_command import Export, Import, import_lines
from cluster.checks import StartError

_NO_KEY = "the cluster's own key is in its data folder; with another one set SWITCHYARD_API_KEY"
TIMEOUT_S = 310.0


def add_commands(commands: Any, common: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    """The parsers of these commands, each of which sets `ask`: what it sends, see `_Ask`."""
    output = argparse.ArgumentParser(add_help=False, parents=[common])
    output.add_argument("--json", action="store_true", help="all that is known, as JSON")

    def command(group: Any, name: str, ask: Callable[[argparse.Namespace], Any], text: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = group.add_parser(name, parents=[output], help=text)
        parser.set_defaults(command=run, ask=ask)
        return parser

    orgs = commands.add_parser("orgs", help="organisations").add_subparsers(required=True, metavar="WHAT")
    command(orgs, "list", lambda a: _Ask("GET", "/v1/admin/orgs"), "list them")
    put = command(orgs, "put", lambda a: _Ask("PUT", f"/v1/admin/orgs/{_part(a.org)}", _rules(a)), "make or change one")
    put.add_argument("org")
    _add_rules(put)
    _add_disabled(put)
    teams = commands.add_parser("teams", help="teams of an organisation").add_subparsers(required=True, metavar="WHAT")
    listed = command(teams, "list", lambda a: _Ask("GET", f"/v1/admin/orgs/{_part(a.org)}/teams"), "list them")
    listed.add_argument("org")
    put = command(
        teams,
        "put",
        lambda a: _Ask("PUT", f"/v1/admin/orgs/{_part(a.org)}/teams/{_part(a.team)}", _rules(a)),
        "make or change one",
    )
    put.add_argument("org")
    put.add_argument("team")
    _add_rules(put)
    _add_disabled(put)
    _add_keys(commands, command)
    _add_policies(commands, command)
    _add_audit(commands, command)
    _add_experiments(commands, command)
    erase = command(commands, "erase", _erasure, "forget an organisation, or one of its users; this cannot be undone")
    erase.add_argument("--org", required=True)
    erase.add_argument("--user")
    erase.add_argument("--yes", action="store_true", required=True, help="that it is meant")
    command(commands, "compliance", lambda a: _Ask("GET", "/v1/admin/compliance"), "say what is stored, where and how")
    alerts = commands.add_parser("alerts", help="what operators were told")
    alerts = alerts.add_subparsers(required=True, metavar="WHAT")
    listed = command(alerts, "list", lambda a: _Ask("GET", f"/v1/alerts?limit={a.limit}"), "the newest first")
    listed.add_argument("--limit", type=int, default=20)
    command(alerts, "test", lambda a: _Ask("POST", "/v1/alerts/test"), "send one to every channel")
    _add_cache(commands, command)


def _add_cache(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    cache = commands.add_parser("cache", help="stored answers").add_subparsers(required=True, metavar="WHAT")
    forget = command(
        cache,
        "forget",
        lambda a: _Ask("POST", "/v1/cache/invalidate", _forgotten(a)),
        "say which answers are meant and, with --yes, drop them in all replicas",
    )
    forget.add_argument("--org", help="default: that of the key that asks")
    forget.add_argument("--namespace")
    forget.add_argument("--id", help="the request that the answer was made for")
    forget.add_argument("--model")
    forget.add_argument("--version", help="of the model, as this command shows it")
    forget.add_argument("--outdated", action="store_true", help="made by a version of a model that is served no more")
    forget.add_argument("--tag")
    forget.add_argument("--question", help="answers to questions like this one")
    forget.add_argument("--similarity", type=float, default=0.9, help="how like it: a cosine (0.9)")
    forget.add_argument("--all", action="store_true", help="every answer of the organisation")
    forget.add_argument("--yes", action="store_true", help="drop them; without it nothing is dropped")
    export = command(
        cache, "export", lambda a: Export(a.file, a.org, a.namespace), "write an organisation's answers to a file"
    )
    export.add_argument("--namespace", help="only of this one")
    brought = command(
        cache, "import", lambda a: Import(a.file, a.org, a.dry_run), "bring the answers of a file to an organisation"
    )
    brought.add_argument("--dry-run", action="store_true", help="only say what would come of them")
    for parser in (export, brought):
        parser.add_argument("file", type=Path)
        parser.add_argument("--org", help="default: that of the key that asks")


def _forgotten(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("org", "namespace", "id", "model", "version", "outdated", "tag", "question", "similarity")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return {**given, "all": arguments.all, "dry_run": not arguments.yes}


def _add_keys(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    keys = commands.add_parser("keys", help="API keys").add_subparsers(required=True, metavar="WHAT")
    listed = command(keys, "list", _keys, "list them")
    listed.add_argument("--org")
    listed.add_argument("--team")
    listed.add_argument("--ended", action="store_true", help="those that were revoked or have expired, too")
    create = command(keys, "create", lambda a: _Ask("POST", "/v1/admin/keys", _key(a)), "make one; it is shown once")
    create.add_argument("--org", help="default: that of the key that asks")
    create.add_argument("--team", default="")
    create.add_argument("--user", default="")
    create.add_argument("--name", default="", help="to recognise it by")
    create.add_argument("--scope", action="append", help="infer (the default), usage, admin or audit; may be repeated")
    create.add_argument("--expires-in-days", type=float)
    _add_rules(create)
    rotate = command(
        keys,
        "rotate",
        lambda a: _Ask("POST", f"/v1/admin/keys/{_part(a.id)}/rotate", {"overlap_s": round(a.overlap_hours * 3600)}),
        "put a new one in the place of one",
    )
    rotate.add_argument("id")
    rotate.add_argument("--overlap-hours", type=float, default=24.0, help="for how long the old one goes on (24)")
    revoke = command(keys, "revoke", lambda a: _Ask("DELETE", f"/v1/admin/keys/{_part(a.id)}"), "end one at once")
    revoke.add_argument("id")


def _add_policies(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    policies = commands.add_parser("policies", help="budgets and limits").add_subparsers(required=True, metavar="WHAT")
    command(policies, "list", lambda a: _Ask("GET", "/v1/admin/policies"), "list them")
    put = command(policies, "put", lambda a: _Ask("POST", "/v1/admin/policies", _policy(a)), "set or change one")
    put.add_argument("unit", choices=("microusd", "requests", "tokens", "concurrent"))
    put.add_argument("amount", type=int)
    put.add_argument("--span", choices=("minute", "day", "month", "total", "now"), help="of money: month, unless given")
    for subject in ("org", "team", "key", "model"):
        put.add_argument(f"--{subject}", default="")
    put.add_argument("--soft", action="store_true", help="only watch it")
    remove = command(policies, "remove", lambda a: _Ask("DELETE", f"/v1/admin/policies/{_part(a.id)}"), "end one")
    remove.add_argument("id")


def _add_audit(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    audit = commands.add_parser("audit", help="what administrators did and whom was denied what")
    audit = audit.add_subparsers(required=True, metavar="WHAT")
    listed = command(audit, "list", _audit_page, "show entries")
    listed.add_argument("--after", default="", help="the id of the entry before the first one shown (see --json)")
    listed.add_argument("--limit", type=int, default=100)
    verify = command(
        audit,
        "verify",
        lambda a: _Ask("GET", "/v1/audit/verify" + (f"?head={_part(a.head)}" if a.head else "")),
        "check that no entry was changed or removed",
    )
    verify.add_argument("--head", help="a hash noted earlier, so that a log whose end was cut off is seen too")


def _add_experiments(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    group = commands.add_parser("experiments", help="how experiments stand, and who wins them")
    group = group.add_subparsers(required=True, metavar="WHAT")
    command(group, "list", lambda a: _Ask("GET", "/v1/experiments"), "list them")
    show = command(group, "show", lambda a: _Ask("GET", f"/v1/experiments/{_part(a.name)}"), "show one")
    promote = command(
        group,
        "promote",
        lambda a: _Ask("POST", f"/v1/experiments/{_part(a.name)}/promote", {"arm": a.arm}),
        "give everybody one of its arms",
    )
    withdraw = command(
        group, "withdraw", lambda a: _Ask("POST", f"/v1/experiments/{_part(a.name)}/withdraw"), "have one go on"
    )
    for parser in (show, promote, withdraw):
        parser.add_argument("name")
    promote.add_argument("arm")


class _Ask:
    """One request: what a command line means."""

    def __init__(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        self.method, self.path, self.body = method, path, body

    def send(self, client: httpx.Client) -> httpx.Response:
        return client.request(self.method, self.path, json=self.body)


def run(arguments: argparse.Namespace, base_url: str, key: str) -> list[str]:
    """Ask the cluster; the lines to print. Raises `StartError` with what the cluster said when it refuses."""
    ask: _Ask | Export | Import = arguments.ask(arguments)
    headers = {"authorization": f"Bearer {key}"}
    try:
        with httpx.Client(base_url=base_url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
            answer = ask.send(client)
            told = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise StartError(f"the cluster at {base_url} did not answer ({type(error).__name__})") from None
    if answer.status_code in (401, 403):
        raise StartError(f"{told['error']['message']} ({_NO_KEY})")
    if answer.status_code >= 400:
        raise StartError(told["error"]["message"])
    if told.get("object") == "audit.verdict" and not told["valid"]:
        where = f" at entry {told['broken_at']}" if "broken_at" in told else ""
        raise StartError(f"the audit log is broken{where}: {told['reason']}")
    if arguments.json:
        return [json.dumps(told, indent=2)]
    return list(_told(told))


def _told(told: dict[str, Any]) -> Iterable[str]:
    match told["object"]:
        case "list":
            for entry in told["data"]:
                yield from _told(entry) if entry.get("object") == "experiment" else (_line(entry),)
            if not told["data"]:
                yield "none"
        case "compliance":
            yield from (_store_line(store) for store in told["stores"])
            if told["unreadable"]:
                yield f"unreadable: {told['unreadable']} stored responses and files; the Archive's log names them"
        case "erasure":
            counts = ", ".join(f"{count} {what}" for what, count in told["erased"].items())
            yield f"erased: {counts}"
            yield from (f"kept: {what}" for what in told["kept"])
        case "alert":
            yield _alert_line(told)
        case "cache.invalidation":
            yield f"{told['count']} answers {'would be' if told['dry_run'] else 'were'} dropped"
            yield from (_line(entry) for entry in told["data"])
        case "cache.export":
            yield f"{told['count']} answers written to {told['file']}"
        case "cache.import":
            yield from import_lines(told)
        case "audit.verdict":
            yield f"{told['entries']} entries, all in their place. Newest hash: {told['head']}"
        case "experiment":
            yield _line({name: value for name, value in told.items() if name != "arms"})
            yield from (_arm(arm) for arm in told["arms"])
        case _:
            yield _line(told)
            if "key" in told:
                yield f"{told['key']}\n(this is the only time that it is shown)"


def _line(entry: dict[str, Any]) -> str:
    """The columns that have something in them."""
    if entry.get("object") == "audit.entry":
        actor = entry["actor"]
        who = actor["key_id"] or "nobody known"
        where = actor["forwarded_for"] or actor["address"]
        times = f" x{entry['count']}" if entry["count"] > 1 else ""
        number, when = entry.get("sequence", entry["id"]), _when(entry["at_unix_ms"])
        return f"{number}  {when}  {entry['act']} {entry['outcome']}{times}  {entry['target']}  {who} {where}"
    if entry.get("object") == "alert":
        return _alert_line(entry)
    columns = [entry["id"]]
    for name, value in entry.items():
        if name in ("object", "id", "key", "created_at_unix_ms") or value in (None, "", False):
            continue
        if name == "rules":
            columns += [f"{rule}={_plain(what)}" for rule, what in value.items() if what not in (None, False)]
        elif name.endswith("_at_unix_ms"):
            columns.append(f"{name.removesuffix('_at_unix_ms')}={_when(value)}")
        else:
            columns.append(f"{name}={_plain(value)}")
    return "  ".join(columns)


def _arm(arm: dict[str, Any]) -> str:
    """The measures that somebody has, each with its interval."""
    columns = [f"  {arm['arm']}", arm["verdict"], *(["shadow"] if arm["shadow"] else [])]
    columns += [f"{name}={arm[name]}" for name in ("units", "requests", "failed", "cost_microusd")]
    for name, measure in arm["measures"].items():
        if measure["mean"] is not None:
            interval = f" ({measure['low']:g} to {measure['high']:g})" if measure["low"] is not None else ""
            columns.append(f"{name}={measure['mean']:g}{interval}")
    return "  ".join(columns)


def _store_line(store: dict[str, Any]) -> str:
    amount = "" if store["entries"] is None else f"  {store['entries']} entries"
    told = {"where": store["where"], "how long": store["kept"], "encrypted": store["encrypted"]}
    return "\n".join([f"{store['what']}{amount}", *(f"  {name}: {value}" for name, value in told.items())])


def _audit_page(arguments: argparse.Namespace) -> _Ask:
    return _Ask("GET", f"/v1/audit?after={_part(arguments.after)}&limit={arguments.limit}")


def _erasure(arguments: argparse.Namespace) -> _Ask:
    body = {"org": arguments.org} | ({"user": arguments.user} if arguments.user else {})
    return _Ask("POST", "/v1/admin/erasures", body)


def _alert_line(alert: dict[str, Any]) -> str:
    ways = "".join(
        f"  {name}: {each['state']}" + (f" ({each['error']})" if each["error"] else "")
        for name, each in alert.get("deliveries", {}).items()
    )
    return f"{alert['at']}  {alert['severity']}  {alert['org']}  {alert['title']}: {alert['text']}{ways}"


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value).lower() if value is True else str(value)


def _when(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _part(text: str) -> str:
    return quote(text, safe="")


def _add_rules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", action="append", help="that may answer (default: all); may be repeated")
    parser.add_argument("--region", action="append", help="in which it may be answered (default: all); may be repeated")
    parser.add_argument("--local-only", action="store_true", help="nothing leaves this cluster")


def _add_disabled(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--disabled", action="store_true", help="refuse all its keys")


def _rules(arguments: argparse.Namespace) -> dict[str, Any]:
    body = {"models": arguments.model, "regions": arguments.region, "local_only": arguments.local_only}
    if hasattr(arguments, "disabled"):
        body["disabled"] = arguments.disabled
    return body


def _keys(arguments: argparse.Namespace) -> _Ask:
    given = {"org": arguments.org, "team": arguments.team, "ended": "true" if arguments.ended else None}
    query = "&".join(f"{name}={_part(value)}" for name, value in given.items() if value is not None)
    return _Ask("GET", "/v1/admin/keys" + (f"?{query}" if query else ""))


def _key(arguments: argparse.Namespace) -> dict[str, Any]:
    body = _rules(arguments) | {"team": arguments.team, "user": arguments.user, "name": arguments.name}
    body["scopes"] = arguments.scope or ["infer"]
    if arguments.org:
        body["org"] = arguments.org
    if arguments.expires_in_days is not None:
        body["expires_in_s"] = round(arguments.expires_in_days * 86_400)
    return body


def _policy(arguments: argparse.Namespace) -> dict[str, Any]:
    body: dict[str, Any] = {"unit": arguments.unit, "amount": arguments.amount, "hard": not arguments.soft}
    body |= {"team": arguments.team, "key": arguments.key, "model": arguments.model}
    given = {"org": arguments.org, "span": arguments.span}
    return body | {name: value for name, value in given.items() if value}
