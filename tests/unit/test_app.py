"""The builder: what it makes of a configuration, without starting anything."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve import Application

from deployments.app import build
from deployments.cache import cache_deployments
from deployments.cloud import adapter
from models.providers import PROVIDERS
from router.cloud import is_installed, resolved, secret_names, with_settings
from router.topology import Topology

ROOT = Path(__file__).parents[2]
SIM = {"name": "sim", "entry": {"name": "sim", "engine": "simulated", "context_tokens": 100}}
CLOUD = {
    "name": "acme",
    "dialect": "openai",
    "base_url": "http://127.0.0.1:9/v1",
    "api_key_env": "ACME_KEY",
    "models": [{"name": "acme-1", "engine": "openai_compatible", "context_tokens": 100}],
}


@pytest.fixture
def args(tmp_path: Path) -> dict:
    return {"data_dir": str(tmp_path), "local_models": [SIM], "auto_providers": False}


def deployments_of(app: Application) -> set[str]:
    """The names of all deployments that `app` binds."""
    found: set[str] = set()

    def walk(value: object) -> None:
        if isinstance(value, Application):
            bound = value._bound_deployment
            found.add(bound.name)
            walk(list(bound.init_args) + list(bound.init_kwargs.values()))
        elif isinstance(value, dict):
            walk(list(value.values()))
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)
        elif hasattr(value, "handle"):
            walk(value.handle)

    walk(app)
    return found


def test_the_graph_has_every_stage_under_its_name(args):
    graph = deployments_of(build(args))
    assert graph == {
        "Ingress",
        "SemanticCache",
        "ComplexityClassifier",
        "Batcher",
        "Ledger",
        "Archive",
        "SimulatedModel:sim",
    }


def test_stages_can_be_placed_inline_or_left_out(args):
    graph = deployments_of(build({**args, "classifier": "inline", "semantic_cache": "off"}))
    assert graph == {"Ingress", "Batcher", "Ledger", "Archive", "SimulatedModel:sim"}


def test_the_classifier_is_given_the_heads_of_the_models_that_run(args):
    mine = {**SIM, "entry": {**SIM["entry"], "head": "/heads/sim.safetensors"}}
    another = {"name": "demo-medium", "source": "/models/mine"}
    app = build({**args, "local_models": [mine, {"name": "demo-small"}, another]})
    heads, models = app._bound_deployment.init_kwargs["classifier"]._bound_deployment.init_args
    assert heads == {"sim": "/heads/sim.safetensors", "demo-small": "demo:small"}, "not of one with other weights"
    assert models == ["sim", "demo-small", "demo-medium"]


def test_a_provider_is_enabled_by_its_key_alone(args, monkeypatch):
    assert "CloudModel:acme" not in deployments_of(build({**args, "cloud": [CLOUD]}))
    monkeypatch.setenv("ACME_KEY", "secret")
    assert "CloudModel:acme" in deployments_of(build({**args, "cloud": [CLOUD]}))
    monkeypatch.delenv("ACME_KEY")
    assert "CloudModel:acme" in deployments_of(build({**args, "cloud": [{**CLOUD, "api_key_env": None}]}))


def test_a_provider_can_be_placed_in_the_door_itself(args, monkeypatch):
    monkeypatch.setenv("ACME_KEY", "secret")
    app = build({**args, "local_models": [], "cloud": [{**CLOUD, "placement": "inline", "max_concurrency": 7}]})
    assert "CloudModel:acme" not in deployments_of(app)
    door = app._bound_deployment.init_kwargs
    (own,) = door["inline"]
    assert own.backend == "CloudModel:acme" and [key.get_secret_value() for key in own.api_keys] == ["secret"]
    assert "secret" not in repr(door)
    assert door["batcher"]._bound_deployment.init_args == ({}, {"CloudModel:acme": 7})
    assert app._bound_deployment.ray_actor_options["runtime_env"]["env_vars"]["ACME_KEY"] == ""


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({**CLOUD, "scale": {"max_replicas": 2}}, "leave `scale` out"),
        ({"provider": "bedrock"}, "cannot be placed inline"),
        ({"provider": "vertex-gemini"}, "cannot be placed inline"),
    ],
)
def test_what_cannot_be_placed_inline_is_refused(args, line, why):
    with pytest.raises(ValidationError, match=why):
        build({**args, "cloud": [{**line, "placement": "inline"}]})


NEEDED = {
    "AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com",
    "AWS_REGION": "us-east-1",
    "GOOGLE_CLOUD_PROJECT": "p",
    "GOOGLE_CLOUD_LOCATION": "global",
}


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
async def test_every_known_provider_has_its_adapter(provider, args, monkeypatch):
    for name, value in {**NEEDED, **{variable: "k1,k2" for variable in provider.key_variables}}.items():
        monkeypatch.setenv(name, value)
    line = {"provider": provider.name, "base_url": "http://127.0.0.1:9"} if provider.name == "vllm" else {}
    line |= {"models": [{"name": "m", "context_tokens": 9}]} if provider.name in ("ollama", "vllm") else {}
    graph = deployments_of(build({**args, "cloud": [{"provider": provider.name, **line}]}))
    assert f"CloudModel:{provider.name}" in graph or not all(is_installed(module) for module, _ in provider.packages)
    (endpoint,) = resolved(Topology(cloud=[{"provider": provider.name, **line}], auto_providers=False)).cloud
    model = adapter(with_settings(endpoint, os.environ), "k1" if provider.key_variables else None)
    await model.close()


def test_a_key_in_the_environment_is_all_that_a_provider_needs(args, monkeypatch):
    for name in secret_names(Topology()):
        monkeypatch.delenv(name, raising=False)
    del args["auto_providers"]
    assert not any(name.startswith("CloudModel") for name in deployments_of(build(args)))
    monkeypatch.setenv("GROQ_API_KEY", "secret")
    app = build(args)
    assert {name for name in deployments_of(app) if name.startswith("CloudModel")} == {"CloudModel:groq"}
    assert app._bound_deployment.ray_actor_options["runtime_env"]["env_vars"] == {"GROQ_API_KEY": ""}
    assert "secret" not in repr(app._bound_deployment.init_kwargs)


@pytest.mark.parametrize(
    ("device", "num_gpus", "reserved"), [("cpu", 0, 0), ("cuda", 0, 1), ("cuda", 0.25, 0.25), ("cpu", 0.5, 0.5)]
)
def test_an_encoder_on_a_gpu_has_one_reserved(device, num_gpus, reserved):
    topology = Topology(encoder={"device": device}, cache_scale={"num_gpus": num_gpus})
    (cache,) = cache_deployments(topology, "data")
    assert cache._bound_deployment.ray_actor_options["num_gpus"] == reserved


def test_the_operators_key_is_made_once_and_only_its_owner_reads_it(args, tmp_path):
    build(args)
    path = tmp_path / "api_key"
    key = path.read_text()
    assert key.startswith("sy-")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    build(args)
    assert path.read_text() == key


def test_a_key_from_the_environment_stands_before_the_file(args, tmp_path, monkeypatch):
    monkeypatch.setenv("SWITCHYARD_API_KEY", "sy-mine")
    build(args)
    assert not (tmp_path / "api_key").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"local_models": []}, "no model to serve"),
        ({"local_models": [{"name": "gpt-9"}]}, "not in the catalogue"),
        ({"local_models": [{"name": "c", "entry": CLOUD["models"][0]}]}, "list it in 'cloud'"),
        ({"local_models": [SIM, SIM]}, "unique"),
        ({"unknown": 1}, "unknown"),
        ({"local_models": [{**SIM, "engine_args": {"warp": 9}}]}, "warp"),
        ({"local_models": [{**SIM, "scale": {"min_replicas": 3}}]}, "min_replicas"),
        ({"cache_store": "mysql://host/database"}, "redis://"),
        ({"cache_store": "redis://:secret@host/0"}, "SWITCHYARD_CACHE_STORE_URL"),
        ({"cache_store": "redis://host/0", "cache_on_disk": True}, "cache_on_disk"),
    ],
)
def test_a_wrong_configuration_is_told_what_is_wrong(args, change, said):
    with pytest.raises((ValueError, ValidationError), match=said):
        build({**args, **change})


def test_a_store_of_answers_is_in_the_configuration_or_with_its_password_in_the_environment(args, monkeypatch):
    def stores(**change) -> list:
        found = []
        for app in build({**args, **change, "cache_scale": {"max_replicas": 2}})._bound_deployment.init_kwargs[
            "caches"
        ]:
            _, folder, _, store_url, part, files = app._bound_deployment.init_args
            assert part.names == ("SemanticCache:0", "SemanticCache:1") and files == ()
            found.append((folder, part.name, store_url.get_secret_value()))
        return found

    names = ("SemanticCache:0", "SemanticCache:1")
    assert stores() == [(None, name, "") for name in names]
    assert stores(cache_store="redis://host/0") == [(None, name, "redis://host/0") for name in names]
    monkeypatch.setenv("SWITCHYARD_ENCRYPTION_KEY", "00" * 32)
    monkeypatch.setenv("SWITCHYARD_CACHE_STORE_URL", "postgresql://who:secret@host/answers")
    assert stores(cache_store="redis://host/0")[0] == (None, names[0], "postgresql://who:secret@host/answers")
    app = build(args)
    assert "secret" not in repr(app._bound_deployment.init_kwargs)
    blanked = app._bound_deployment.ray_actor_options["runtime_env"]["env_vars"]
    assert blanked["SWITCHYARD_CACHE_STORE_URL"] == ""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"switchyard\[postgres\]"):
        build(args)


@pytest.mark.parametrize("path", sorted(ROOT.glob("serve_config*.yaml")), ids=lambda path: path.name)
def test_every_profile_builds_and_names_only_deployments_it_has(path, tmp_path):
    application = yaml.safe_load(path.read_text())["applications"][0]
    graph = deployments_of(build({**application["args"], "data_dir": str(tmp_path)}))
    assert {deployment["name"] for deployment in application.get("deployments", [])} <= graph


def test_the_doors_process_loads_no_engine():
    look = "import sys, deployments.ingress, deployments.app; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = [
        "torch",
        "vllm",
        "ray.llm",
        "ray.serve.llm",
        "transformers",
        "sentence_transformers",
        "anthropic",
        "usearch",
    ]
    done = subprocess.run([sys.executable, "-c", look, *heavy], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
