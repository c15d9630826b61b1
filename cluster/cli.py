"""The command `switchyard`: start a cluster in the foreground, find it, stop it, take its books along."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from cluster import admin_command, state, usage_command
from cluster.checks import StartError
from cluster.runtime import ClusterDied, applications, data_dir_of, is_ready, load_config, running, watch
from cluster.state import Cluster
from models.errors import SwitchyardError

DOWN_S = 20.0
ROUTE_S = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when done, 1 when it cannot be done or nothing runs, 2 for a wrong command line."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
    except (StartError, ClusterDied, SwitchyardError) as error:
        print(f"switchyard: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, help="a Serve config file (default: serve_config.yaml)")
    common.add_argument("--data-dir", type=Path, help="where state is kept (default: the config's, else ~/.switchyard)")
    parser = argparse.ArgumentParser(prog="switchyard", description="An LLM inference cluster on Ray Serve.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", parents=[common], help="start a cluster and stay in the foreground")
    up.add_argument("--port", type=int, help="of the HTTP door (default: the config's; 0: a free one)")
    up.add_argument("--num-cpus", type=int, help="that Ray may hand out (default: those of the machine)")
    up.set_defaults(command=_up)
    for name, command, text in (
        ("down", _down, "stop the cluster"),
        ("status", _status, "say what runs, and whether it is healthy"),
        ("env", _env, 'print what a Python program needs to reach the cluster: eval "$(switchyard env)"'),
    ):
        commands.add_parser(name, parents=[common], help=text).set_defaults(command=command)
    models = commands.add_parser("models", parents=[common], help="list the models, their prices, and what is enabled")
    models.add_argument("--provider", help="only of this provider")
    models.add_argument("--json", action="store_true", help="with everything that is known of each")
    models.set_defaults(command=_models)
    usage = commands.add_parser("usage", help="what the books say").add_subparsers(required=True, metavar="WHAT")
    export = usage.add_parser("export", parents=[common], help="write the requests of a time to a file")
    export.add_argument("file", type=Path)
    export.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    export.add_argument("--by-day", action="store_true", help="a folder of Parquet files, one for each day")
    export.add_argument("--since", default="", help="such as 2026-05-31 (default: 30 days ago)")
    export.add_argument("--until", default="", help="such as 2026-06-30T12:00:00Z (default: now)")
    export.set_defaults(command=_export)
    usage_command.add_commands(usage, common, _ask_usage)
    admin_command.add_commands(commands, common, _administer)
    route = commands.add_parser("route", parents=[common], help="say which model would answer, why, and at what cost")
    route.add_argument("question")
    route.add_argument("--strategy", help="instead of the configured one")
    route.set_defaults(command=_route)
    _add_learning(commands)
    return parser


def _add_learning(commands: Any) -> None:
    """Those that work on files of what was recorded, without a cluster."""
    saved = commands.add_parser("savings", help="what a recorded time would have cost under other policies")
    saved.add_argument("file", type=Path, help="made by `switchyard usage export`")
    saved.add_argument("--strategy", help="only requests that this strategy decided")
    saved.set_defaults(command=_savings)
    again = commands.add_parser("replay", help="what a recorded time would have cost, and been worth, under a policy")
    again.add_argument("file", type=Path, help="made by `switchyard usage export`")
    again.add_argument("--policy", type=Path, help="a Serve configuration, or its `routing` alone (default: defaults)")
    again.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of `routing`")
    again.add_argument("--strategy", help="only requests that this strategy decided")
    again.add_argument("--org", help="only requests of this organisation")
    again.set_defaults(command=_replay)
    place = commands.add_parser("place", help="where a new model stands, from a few dozen labelled outcomes")
    place.add_argument("model")
    place.add_argument(
        "--tier", choices=("small", "medium", "large"), default="medium", help="what it is thought to be"
    )
    place.add_argument("--labels", type=Path, help='JSON lines, each {"prompt": "...", "good": 1}')
    place.add_argument("--log", type=Path, help="made by `switchyard usage export`: what callers said of its answers")
    place.set_defaults(command=_place)
    head = commands.add_parser("head", help="learn from hundreds of labelled outcomes what a model answers well")
    head.add_argument("model")
    head.add_argument("--labels", type=Path, help='JSON lines, each {"prompt": "...", "good": 1}')
    head.add_argument("--log", type=Path, help="made by `switchyard usage export`: what callers said of its answers")
    head.add_argument(
        "--prompts", type=Path, help='of the requests in it: JSON lines {"id": "req_...", "prompt": "..."}'
    )
    head.add_argument("--start", metavar="FILE", help="the head of a model much like it, where there are few outcomes")
    head.add_argument("--out", type=Path, required=True, help="the file to write (.safetensors)")
    head.set_defaults(command=_head)
    gates = commands.add_parser("gates", help="thresholds for a cascade's gates, learned from rated answers")
    gates.add_argument("file", type=Path, help="made by `switchyard usage export`")
    gates.add_argument("--target", type=float, default=0.95, help="share of what is given out that has to be good")
    gates.add_argument("--org", help="only requests of this organisation")
    gates.set_defaults(command=_gates)


def _up(arguments: argparse.Namespace) -> int:
    # Also SIGINT, which a shell has background programs ignore; but not a hang-up that nohup has us ignore.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    began = time.monotonic()
    with running(
        load_config(_config_path(arguments)),
        data_dir=arguments.data_dir,
        port=arguments.port,
        num_cpus=arguments.num_cpus,
        report=_say,
    ) as cluster:
        _say(f"started in {time.monotonic() - began:.0f} s")
        _introduce(cluster)
        print(f"switchyard ready {cluster.base_url}", flush=True)
        try:
            watch(cluster, _say)
        finally:
            _say("stopping")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    data_dir = _data_dir(arguments)
    cluster = state.find(data_dir)
    if cluster is None:
        print(f"no cluster runs with the data folder {data_dir}")
        return 0
    os.kill(cluster.pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_S
    while time.monotonic() < deadline:
        time.sleep(0.1)
        if state.find(data_dir) is None:
            print("stopped")
            return 0
    raise ClusterDied(f"the cluster did not stop within {DOWN_S:.0f} s: end process {cluster.pid} and run this again")


def _status(arguments: argparse.Namespace) -> int:
    cluster = _running_cluster(arguments)
    _introduce(cluster)
    try:
        described = applications(cluster)
    except httpx.HTTPError:
        print("Ray does not answer yet")
        return 1
    for name, application in described.items():
        print(f"{name}: {application['status']}")
        for deployment, details in sorted(application["deployments"].items()):
            replicas = len(details.get("replicas", ()))
            print(f"  {deployment}: {details['status']}, {replicas} {'replica' if replicas == 1 else 'replicas'}")
    ready = is_ready(cluster)
    print(f"switchyard {'ready' if ready else 'not ready'} {cluster.base_url}")
    return 0 if ready else 1


def _env(arguments: argparse.Namespace) -> int:
    cluster = _running_cluster(arguments)
    variables = cluster.driver_environment
    if not cluster.key_from_environment:
        variables["SWITCHYARD_API_KEY"] = cluster.api_key
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def _models(arguments: argparse.Namespace) -> int:
    from cluster.models_command import as_json, as_table, groups  # the catalogue is for this command alone

    found = groups(load_config(_config_path(arguments)), arguments.provider)
    try:
        print(as_json(found) if arguments.json else as_table(found), flush=True)
    except BrokenPipeError:  # its reader has seen enough, as in `switchyard models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from cluster.usage_export import Form, export  # it and the books are for this command alone
    from router.accounting.usage import parse_usage_query

    query = parse_usage_query({"since": arguments.since, "until": arguments.until}, int(time.time() * 1000))
    form: Form = "days" if arguments.by_day else arguments.format
    url = os.environ.get("SWITCHYARD_LEDGER_URL", "")
    rows = export(_data_dir(arguments), arguments.file, form, query, url=url)
    print(f"{rows} {'request' if rows == 1 else 'requests'} written to {arguments.file}")
    return 0


def _administer(arguments: argparse.Namespace) -> int:
    cluster = _running_cluster(arguments)
    lines = admin_command.run(arguments, cluster.base_url, os.environ.get("SWITCHYARD_API_KEY") or cluster.api_key)
    print("\n".join(lines))
    return 0


def _ask_usage(arguments: argparse.Namespace) -> int:
    cluster = _running_cluster(arguments)
    told = usage_command.run(arguments, cluster.base_url, os.environ.get("SWITCHYARD_API_KEY") or cluster.api_key)
    print(told, end="" if told.endswith("\n") else "\n")
    return 0


def _route(arguments: argparse.Namespace) -> int:
    """Nothing is executed: this is POST /v1/route."""
    cluster = _running_cluster(arguments)
    body: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": arguments.question}]}
    if arguments.strategy:
        body["switchyard"] = {"strategy": arguments.strategy}
    headers = {"authorization": f"Bearer {cluster.api_key}"}
    answer = httpx.post(f"{cluster.base_url}/v1/route", json=body, headers=headers, timeout=ROUTE_S)
    print(json.dumps(answer.json(), indent=2))
    return 0 if answer.is_success else 1


def _savings(arguments: argparse.Namespace) -> int:
    from cluster.savings_command import savings  # numpy and Parquet are for these two commands alone

    print(savings(arguments.file, arguments.strategy).text())
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    from cluster.replay_command import replay

    print(replay(arguments.file, arguments.policy, arguments.set, arguments.strategy, arguments.org))
    return 0


def _place(arguments: argparse.Namespace) -> int:
    from cluster.place_command import place_model

    print(place_model(arguments.model, arguments.tier, arguments.labels, arguments.log))
    return 0


def _head(arguments: argparse.Namespace) -> int:
    from cluster.head_command import make_head  # scikit-learn is for this command alone

    print(
        make_head(arguments.model, arguments.labels, arguments.log, arguments.prompts, arguments.start, arguments.out)
    )
    return 0


def _gates(arguments: argparse.Namespace) -> int:
    from cluster.gates_command import gates

    print(gates(arguments.file, arguments.target, arguments.org))
    return 0


def _running_cluster(arguments: argparse.Namespace) -> Cluster:
    data_dir = _data_dir(arguments)
    cluster = state.find(data_dir)
    if cluster is None:
        raise StartError(f"no cluster runs with the data folder {data_dir}: start one with `switchyard up`")
    return cluster


def _config_path(arguments: argparse.Namespace) -> Path:
    """As given, else the one here, else the one that this program came with."""
    here = Path("serve_config.yaml")
    if arguments.config or here.exists():
        return Path(arguments.config or here)
    return Path(__file__).resolve().parent.parent / "serve_config.yaml"


def _data_dir(arguments: argparse.Namespace) -> Path:
    return data_dir_of(load_config(_config_path(arguments)), arguments.data_dir)


def _introduce(cluster: Cluster) -> None:
    key = "SWITCHYARD_API_KEY" if cluster.key_from_environment else f"{cluster.api_key}  ({cluster.api_key_path})"
    print(f"OpenAI base URL  {cluster.base_url}/v1")
    print(f"API key          {key}")
    print(f"Ray dashboard    {cluster.dashboard_url}  (it asks for a token: paste that in {cluster.token_path})")


def _say(line: str) -> None:
    print(f"switchyard: {line}", file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
