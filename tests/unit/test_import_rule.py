"""Imports go right, never left: cluster --> router --> models, and deployments --> router --> models. A cluster talks
to its deployments over HTTP. What is heavy is imported late."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "deployments", "router", "models")
MAY_IMPORT = {
    "cluster": {"cluster", "router", "models"},
    "deployments": {"deployments", "router", "models"},
    "router": {"router", "models"},
    "models": {"models"},
}
ENGINES = {"torch", "vllm", "transformers", "sentence_transformers", "onnxruntime"}
ENGINE_FILES = {
    "models/demo/evaluate.py",
    "models/demo/grow.py",
    "models/demo/optimizer.py",
    "models/demo/train.py",
    "models/encoder.py",
    "models/smoke.py",
    "models/transformers_engine.py",
    "models/transformers_sampling.py",
    "models/vllm_engine.py",
    "models/vllm_request.py",
}
SDK_FILES = {
    "anthropic": {"models/anthropic.py", "models/anthropic_platforms.py"},
    "openai": set[str](),
    "httpx": set[str](),
    "httpx2": {"models/anthropic.py"},
    "aiohttp": {"models/upstream_http.py"},
}
VLLM_REPLICA = "deployments/vllm_replica.py"
FILES = sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    late: bool  # inside a function, or for type checkers only

    @property
    def package(self) -> str:
        return self.module.split(".")[0]


def imports(file: str) -> Iterator[Import]:
    """Every import statement of a file and every `import_module("...")`, wherever it stands."""
    yield from _imports(ast.parse((ROOT / file).read_text(), file), late=False)


def _imports(node: ast.AST, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import(names=names):
                yield from (Import(name.name, child.lineno, late) for name in names)
            case ast.ImportFrom(module=module, level=0):
                yield Import(str(module), child.lineno, late)
            case ast.ImportFrom(level=level):
                yield Import("." * level, child.lineno, late)
            case ast.Call(func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module")):
                if child.args and isinstance(child.args[0], ast.Constant):
                    yield Import(str(child.args[0].value), child.lineno, late)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        only_types = isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        yield from _imports(child, late or inside or only_types)


def breaches(file: str) -> Iterator[str]:
    package = file.split("/")[0]
    for found in imports(file):
        where = f"{file}:{found.line} imports {found.module}"
        if found.module.startswith("."):
            yield f"{where}: with the whole name, or it goes unseen here"
        if found.package in PACKAGES and found.package not in MAY_IMPORT[package]:
            yield f"{where}: imports go cluster, deployments, router, models, never back (not for types either)"
        if found.package == "ray" and package != "deployments":
            yield f"{where}: ray is for deployments/ alone"
        if found.module.startswith("ray.serve.llm") and file != VLLM_REPLICA:
            yield f"{where}: it takes seconds and half a gigabyte, which only a vLLM replica should spend"
        if found.package in ENGINES and file not in ENGINE_FILES:
            yield f"{where}: only engine and encoder files do"
        if found.package in ENGINES and not found.late:
            yield f"{where}: an engine is imported inside the function that needs it"
        if found.package in SDK_FILES and package != "cluster" and file not in SDK_FILES[found.package]:
            yield f"{where}: a provider's SDK is for its adapter alone"


@pytest.mark.parametrize("file", FILES)
def test_imports_go_right_and_heavy_ones_are_late(file: str) -> None:
    assert not list(breaches(file))


def test_the_named_files_exist() -> None:
    assert set().union(ENGINE_FILES, {VLLM_REPLICA}, *SDK_FILES.values()) <= set(FILES)


def test_the_checker_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "router").mkdir()
    (tmp_path / "router/bad.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from deployments.app import build\n"
        "def f():\n    import torch\n    import ray.serve\n"
        "class C:\n    import httpx\n"
        "import importlib\nimportlib.import_module('vllm')\n"
        "from . import tokens\n"
    )
    assert len(list(breaches("router/bad.py"))) == 7


# ---- what importing does -------------------------------------------------------------------------------------------

PIPELINE = "import router.settings, router.topology, router.pipeline, router.policy, router.strategies"
WATCHED = f"""
import os, sys
roots = tuple(os.path.realpath(path) + os.sep for path in [*sys.path, sys.prefix, sys.base_prefix] if path)
seen = []
def watch(event, args):
    if event.startswith('socket.') and event != 'socket.__new__':
        seen.append(event)
    elif event == 'open' and not os.path.realpath(str(args[0])).startswith(roots):
        seen.append(str(args[0]))
    elif event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wax+'):
        seen.append('written: ' + str(args[0]))
sys.path.insert(0, {str(ROOT)!r})
roots += ({str(ROOT)!r} + os.sep,)
sys.addaudithook(watch)
{PIPELINE}
heavy = {{'ray', 'torch', 'numpy', 'vllm', 'transformers', 'fastapi', 'starlette', 'httpx', 'anthropic', 'openai'}}
print(seen, sorted(heavy & sys.modules.keys()))
"""


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_importing_the_pipeline_touches_nothing_outside_the_import_system() -> None:
    assert python(WATCHED, PYTHONDONTWRITEBYTECODE="1") == "[] []"


def test_importing_the_pipeline_is_cheap(tmp_path: Path) -> None:
    """Processor time with bytecode, best of several, against that of the two libraries it cannot do without: about
    twice as much, 130 ms in all on a current machine. A heavy import would be a multiple."""
    needed = "import asyncio, pydantic\nclass Model(pydantic.BaseModel): x: int"
    environment = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}

    def cost_s(code: str) -> float:
        timed = f"import time; began = time.process_time()\n{code}\nprint(time.process_time() - began)"
        python(timed, **environment)  # compiles
        return min(float(python(timed, **environment)) for _ in range(3))

    assert cost_s(PIPELINE) < 4 * cost_s(needed)
