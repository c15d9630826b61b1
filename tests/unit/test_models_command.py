"""`switchyard models`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cli import main
from models.providers import PROVIDERS

ROOT = Path(__file__).parents[2]
SIM = {"name": "sim", "entry": {"name": "sim", "engine": "simulated", "context_tokens": 100}}


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for provider in PROVIDERS:
        for variable in provider.key_variables:
            monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def run(*options: str, ingress: dict[str, Any] | None = None, **args: Any) -> tuple[int, str, str]:
        deployments = [{"name": "Ingress", "user_config": ingress or {}}]
        application = {"name": "switchyard", "import_path": "x:y", "args": args, "deployments": deployments}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"applications": [application]}))
        code = main(["models", "--config", str(path), *options])
        return code, *capsys.readouterr()

    return run


def test_every_provider_is_there_with_what_is_missing(run):
    code, out, _ = run(local_models=[SIM])
    assert code == 0
    assert all(f"\n{provider.name}: not enabled: " in out for provider in PROVIDERS)
    assert "\ngroq: not enabled: GROQ_API_KEY is not set\n" in out
    assert out.startswith("local: enabled\n") and "  sim " in out


def test_prices_are_those_that_are_charged(run, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    own = tmp_path / "own.yaml"
    own.write_text("providers: {openai: [{name: gpt-4.1-mini, price: {input: 7, output: 8, version: listed}}]}")
    contract = {"prices": {"gpt-4.1": {"input": "1.5", "output": "6", "version": "contract"}}}
    code, out, _ = run("--provider", "openai", "--json", ingress=contract, catalogue=str(own))
    (openai,) = json.loads(out)
    assert (code, openai["enabled"], openai["key_variable"]) == (0, True, "OPENAI_API_KEY")
    models = {model["name"]: model for model in openai["models"]}
    assert models["gpt-4.1"]["price"]["input"] == "1.5"
    assert models["gpt-4.1"]["price_version"].startswith("contract-")
    assert models["gpt-4.1-mini"]["price"]["input"] == "7"
    assert (
        models["gpt-6-luna"]["price"] | {"date": "2026-11-21", "batch_factor": "0.5"} == models["gpt-6-luna"]["price"]
    )
    assert "secret-key" not in out


def test_a_table_fits_its_columns(run):
    _, out, _ = run("--provider", "anthropic")
    head, *rows = [line for line in out.splitlines() if line.startswith("  ")]
    assert head.split()[:6] == ["MODEL", "TIER", "CONTEXT", "ANSWER", "IN", "CACHED"]
    assert len(rows) >= 3
    for row in rows:
        assert row[: head.index("TIER")].split()[0].startswith("claude-")
        assert "platform.claude.com" in row


def test_a_reader_that_has_seen_enough_may_leave():
    command = f"set -o pipefail; {sys.executable} -m cluster.cli models --json | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[\n", "")


@pytest.mark.parametrize(
    ("options", "args", "said"),
    [
        (["--provider", "nobody"], {}, "there is no provider 'nobody': openai, "),
        ([], {"cloud": [{"provider": "nobody"}]}, "there is no provider 'nobody'"),
        ([], {"catalogue": "/nowhere.yaml"}, "/nowhere.yaml cannot be read"),
        ([], {"local_models": [{"name": "gpt-9"}]}, "not in the catalogue"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(run, options, args, said):
    code, out, err = run(*options, **args)
    assert (code, out) == (1, "")
    assert said in err and len(err.strip().splitlines()) == 1
