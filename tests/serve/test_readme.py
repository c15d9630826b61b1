"""What the README says is so: its snippets run against the cluster, and what it names is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from router.settings import IngressSettings
from router.topology import Topology
from tests.serve.product import OPERATOR, Product

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def here(snippet: str, product: Product) -> str:
    """With the address of this cluster."""
    assert ADDRESS not in product.cluster.base_url
    return snippet.replace(ADDRESS, product.cluster.base_url)


def test_there_is_something_to_run() -> None:
    assert len(blocks("python")) >= 2 and any("curl" in block for block in blocks("console"))


@pytest.mark.parametrize("snippet", blocks("python"), ids=lambda snippet: snippet.strip().splitlines()[-1])
def test_python_snippets_run(product: Product, run_driver: Callable[..., str], snippet: str) -> None:
    assert run_driver(here(snippet, product)).strip()


@pytest.mark.parametrize("snippet", [block for block in blocks("console") if "curl" in block])
def test_shell_snippets_run(product: Product, tmp_path: Path, snippet: str) -> None:
    (tmp_path / ".switchyard").mkdir()
    shutil.copy(product.cluster.api_key_path, tmp_path / ".switchyard")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = ["bash", "-euo", "pipefail", "-c", here(snippet, product)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    head, _, body = done.stdout.replace("\r", "").partition("\n\n")
    assert head.splitlines()[0].endswith("200 OK"), done
    assert json.loads(body)["choices"][0]["message"]["content"]


def test_the_switchyard_object_is_taken(product: Product) -> None:
    (extra,) = (json.loads(block.replace("demo-medium", "smoke-medium")) for block in blocks("json"))
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hello!"}], **extra}
    assert product.http().post("/v1/route", json=body).status_code == 200


def test_configuration_snippets_are_valid() -> None:
    for block in map(yaml.safe_load, blocks("yaml")):
        assert "args" in block or "deployments" in block
        Topology.model_validate(block.get("args", {}))
        for deployment in block.get("deployments", ()):
            assert deployment["name"] == "Ingress"
            IngressSettings.model_validate(deployment["user_config"])


def test_routes_are_served(product: Product) -> None:
    (table,) = re.findall(r"^\| route \|.*?\n\n", README, re.MULTILINE | re.DOTALL)
    routes = []
    for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        method = ""
        for said, path in re.findall(r"`(?:([A-Z]+) )?(/[a-z0-9/_]+[a-z0-9])", cell):
            method = said or method  # `GET /a`, `/b`
            routes.append((method, path))
    assert len(routes) >= 9
    for method, path in routes:
        url = f"{path}/req_none" if path == "/v1/receipts" else path
        answer = product.http(OPERATOR).request(method, url, json={} if method == "POST" else None)
        assert "is not served here" not in answer.text and answer.status_code != 405, (method, path)


def test_headers_are_sent(product: Product) -> None:
    whole = product.chat("Which headers?")
    stream = product.chat("Which headers has a stream?", stream=True)
    for name in re.findall(r"`(x-[a-z-]+)`", README):
        assert name in (stream if "expected" in name else whole).headers, name


def test_named_commands_and_files_exist() -> None:
    make = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", "\n".join(blocks("console")), re.MULTILINE)) <= make
    named = set(re.findall(r"`((?:\w+/)*[\w.*]+\.(?:yaml|py|lock|md)|\w+/)(?:: \w+)?`", README))
    named |= set(re.findall(r"\]\(([\w/.]+)\)", README))
    assert {"serve_config.yaml", "router/topology.py", "models/", "LICENSE"} <= named
    assert [name for name in named if not [*ROOT.glob(name), *ROOT.glob(f"*/{name}")]] == []


def test_the_dependencies_it_explains_are_those_that_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(each for extra in extras for each in extra)]
    packages = {re.split(r"[^\w.-]", each)[0] for each in wanted}
    (table,) = re.findall(r"^\| package \|.*?\n\n", README, re.MULTILINE | re.DOTALL)
    explained = set(re.findall(r"`([a-z0-9-]+)(?:\[[\w,]+\])?`", table))
    assert {re.split(r"[^\w.-]", each)[0] for each in project["dependencies"]} <= explained
    assert explained - packages <= {"vllm"}
