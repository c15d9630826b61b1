"""Which providers there are, where their keys come from, and why one is not enabled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from models.catalog import ModelEntry
from models.catalog_file import load_catalogue
from models.providers import ENGINES, PROVIDERS, known_provider
from router.cloud import keys_of, provider_states, resolved, secret_names, with_settings
from router.topology import CloudEndpoint, Topology

OWN = {
    "name": "own",
    "dialect": "openai",
    "base_url": "http://127.0.0.1:9/v1",
    "api_key_env": None,
    "models": [{"name": "own-1", "context_tokens": 100}],
}


def everything(module: str) -> bool:
    return True


def topology(**args: Any) -> Topology:
    return resolved(Topology.model_validate(args))


def states(environment: dict[str, str], installed=everything, **args: Any) -> dict[str, Any]:
    return {state.name: state for state in provider_states(topology(**args), environment, installed)}


def enabled(environment: dict[str, str], **args: Any) -> set[str]:
    return {name for name, state in states(environment, **args).items() if state.enabled}


# ---- which ---------------------------------------------------------------------------------------------------------


def test_without_a_key_nothing_is_enabled_and_everything_says_why():
    found = states({})
    assert set(found) == {provider.name for provider in PROVIDERS}
    assert not any(state.enabled for state in found.values())
    assert all(state.why_not for state in found.values())
    assert found["gemini"].why_not == "GEMINI_API_KEY or GOOGLE_API_KEY is not set"
    assert found["gemini"].key_variable == "GEMINI_API_KEY"


@pytest.mark.parametrize("provider", [p for p in PROVIDERS if p.auto and p.platform is None], ids=lambda p: p.name)
def test_a_key_alone_enables_a_provider_with_its_rows(provider):
    for variable in provider.key_variables:
        state = states({variable: "k"})[provider.name]
        assert state.enabled and state.models and state.key_variable == variable
    assert enabled({provider.key_variables[0]: "k"}) == {provider.name}


def test_one_line_enables_what_a_key_alone_must_not():
    environment = {"HF_TOKEN": "hf_x"}
    assert enabled(environment) == set()
    assert "`cloud: [{provider: huggingface}]`" in states(environment)["huggingface"].why_not
    assert enabled(environment, cloud=[{"provider": "huggingface"}]) == {"huggingface"}


def test_automatic_providers_can_be_switched_off():
    assert enabled({"GROQ_API_KEY": "k"}, auto_providers=False) == set()
    assert enabled({"GROQ_API_KEY": "k"}, auto_providers=False, cloud=[{"provider": "groq"}]) == {"groq"}


def test_azure_needs_its_address_and_is_asked_there():
    args = {"cloud": [{"provider": "azure", "only": ["azure/gpt-4.1"]}]}
    environment = {"AZURE_OPENAI_API_KEY": "k"}
    assert "AZURE_OPENAI_ENDPOINT is not set" in states(environment, **args)["azure"].why_not
    environment["AZURE_OPENAI_ENDPOINT"] = "https://mine.openai.azure.com/"
    assert states(environment, **args)["azure"].models == ("azure/gpt-4.1",)
    (endpoint,) = [e for e in topology(**args).cloud if e.name == "azure"]
    assert with_settings(endpoint, environment).base_url == "https://mine.openai.azure.com/openai/v1"
    assert endpoint.quirks.key_header == "api-key"


def test_bedrock_by_key_or_by_a_line_and_the_machines_credentials():
    region = {"AWS_REGION": "us-east-1"}
    assert enabled({**region, "AWS_BEARER_TOKEN_BEDROCK": "k"}) == {"bedrock"}
    assert enabled({**region, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"}) == set()
    assert enabled(region, cloud=[{"provider": "bedrock"}]) == {"bedrock"}
    assert "AWS_REGION" in states({"AWS_BEARER_TOKEN_BEDROCK": "k"})["bedrock"].why_not
    settings = {"cloud": [{"provider": "bedrock", "settings": {"AWS_REGION": "eu-west-1"}}]}
    assert enabled({}, **settings) == {"bedrock"}


def test_a_missing_package_is_named_with_the_way_to_get_it():
    environment = {"AWS_BEARER_TOKEN_BEDROCK": "k", "AWS_REGION": "us-east-1", "ANTHROPIC_API_KEY": "k"}
    found = states(environment, installed=lambda module: module != "boto3")
    assert found["bedrock"].why_not == "the package 'boto3' is not installed: pip install boto3"
    assert found["anthropic"].enabled
    claude = {**OWN, "dialect": "anthropic"}
    found = states(environment, installed=lambda module: False, cloud=[claude])
    assert "switchyard[cloud]" in found["anthropic"].why_not
    assert "switchyard[cloud]" in found["own"].why_not
    assert found["gemini"].why_not == "GEMINI_API_KEY or GOOGLE_API_KEY is not set"


def test_vertex_serves_both_families_by_a_line():
    environment = {"GOOGLE_CLOUD_PROJECT": "p", "GOOGLE_CLOUD_LOCATION": "global"}
    lines = [{"provider": "vertex-claude"}, {"provider": "vertex-gemini"}]
    assert enabled(environment) == set()
    assert enabled(environment, cloud=lines) == {"vertex-claude", "vertex-gemini"}


def test_own_endpoints_need_no_key():
    ollama = {"provider": "ollama", "models": [{"name": "qwen", "context_tokens": 100}]}
    vllm = {"provider": "vllm", "name": "box", "models": [{"name": "llama", "context_tokens": 100}]}
    found = states({}, cloud=[OWN, ollama, vllm, {"provider": "vllm", "name": "empty", "base_url": "http://x"}])
    assert found["own"].enabled and found["ollama"].enabled
    assert "base_url" in found["box"].why_not
    assert "no models" in found["empty"].why_not
    (endpoint,) = [e for e in topology(cloud=[ollama]).cloud if e.name == "ollama"]
    assert endpoint.base_url == "http://127.0.0.1:11434/v1"
    assert (endpoint.models[0].engine, endpoint.models[0].provider) == ("openai_compatible", "ollama")


# ---- names ---------------------------------------------------------------------------------------------------------


def test_what_the_configuration_lists_stands_before_what_comes_by_itself():
    mine = {**OWN, "models": [{"name": "gpt-4.1", "context_tokens": 100}]}
    both = topology(cloud=[mine])
    assert [e.name for e in both.cloud if any(m.name == "gpt-4.1" for m in e.models)] == ["own"]
    assert any(m.name == "gpt-4.1-mini" for e in both.cloud if e.name == "openai" for m in e.models)
    replaced = {**OWN, "name": "openai", "api_key_env": "OPENAI_API_KEY"}
    (openai,) = [e for e in topology(cloud=[replaced]).cloud if e.name == "openai"]
    assert [m.name for m in openai.models] == ["own-1"]


@pytest.mark.parametrize(
    ("cloud", "said"),
    [
        ([OWN, OWN], "unique"),
        ([{"provider": "groq"}, {"provider": "groq", "name": "groq-2"}], "unique"),
        ([{"provider": "nobody"}], "there is no provider 'nobody'"),
        ([{"name": "x", "dialect": "openai", "models": []}], "needs api_key_env"),
        ([{**OWN, "models": []}], "needs `models`"),
        ([{name: value for name, value in OWN.items() if name != "name"}], "needs name"),
        ([{"provider": "groq", "only": ["gpt-9"]}], "has no model gpt-9"),
        ([{**OWN, "models": [{"name": "m", "context_tokens": 9, "capabilities": ["flight"]}]}], "no such capability"),
        ([{"provider": "groq", "base": "x"}], "base"),
    ],
)
def test_a_wrong_line_is_told_what_is_wrong(cloud, said):
    with pytest.raises((ValueError, ValidationError), match=said):
        topology(cloud=cloud)


# ---- keys ----------------------------------------------------------------------------------------------------------


def test_several_keys_come_in_order_and_each_once():
    endpoint = CloudEndpoint(provider="groq", api_key_env="K")
    assert keys_of(endpoint, {}) == ()
    assert keys_of(endpoint, {"K": " a "}) == ("a",)
    assert keys_of(endpoint, {"K": "a, b,,a", "K_2": "c", "K_3": "b,d"}) == ("a", "b", "c", "d")
    assert keys_of(endpoint, {"K_2": "c"}) == ("c",)
    assert len(keys_of(endpoint, {"K": ",".join(map(str, range(100)))})) == 16


def test_the_first_variable_that_is_set_counts():
    (gemini,) = [e for e in topology().cloud if e.name == "gemini"]
    assert keys_of(gemini, {"GOOGLE_API_KEY": "b"}) == ("b",)
    assert keys_of(gemini, {"GOOGLE_API_KEY": "b", "GEMINI_API_KEY": "a"}) == ("a",)


def test_every_variable_that_may_hold_a_key_is_known_as_secret():
    names = secret_names(topology(cloud=[{**OWN, "api_key_env": "MY_KEY"}], auto_providers=False))
    assert {"MY_KEY", "MY_KEY_2", "OPENAI_API_KEY_16", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"} <= set(names)


# ---- the catalogue -------------------------------------------------------------------------------------------------


def test_every_row_can_be_served_priced_and_traced():
    catalogue = load_catalogue()
    names = [entry.name for entries in catalogue.values() for entry in entries]
    assert len(names) == len(set(names)) > 30
    for provider, entries in catalogue.items():
        known = known_provider(provider)
        for entry in entries:
            assert entry.engine == ENGINES[known.dialect] and entry.provider == provider
            assert entry.price and entry.price.input > 0 and entry.price.output > 0
            assert entry.price.date and entry.price.source and entry.price.version == str(entry.price.date)
            assert (entry.price.cached_input or 0) <= entry.price.input <= entry.price.output
            long = entry.price.long_context
            assert long is None or (long.input > entry.price.input and long.above_input_tokens < entry.context_tokens)
            assert entry.max_output_tokens is None or entry.max_output_tokens <= entry.context_tokens


def test_a_file_of_the_users_changes_and_adds_rows(tmp_path: Path):
    path = tmp_path / "catalogue.yaml"
    path.write_text(
        "providers:\n"
        "  openai:\n"
        "    - {name: gpt-4.1, tier: medium, price: {input: 1, output: 2, version: our-contract}}\n"
        "    - {name: gpt-9, context_tokens: 1000, capabilities: [tools]}\n"
    )
    rows = {entry.name: entry for entry in load_catalogue(path)["openai"]}
    packaged = {entry.name: entry for entry in load_catalogue()["openai"]}
    changed = rows["gpt-4.1"]
    assert (changed.tier, changed.price.version, changed.price.cached_input) == ("medium", "our-contract", None)
    assert (changed.context_tokens, changed.source) == (packaged["gpt-4.1"].context_tokens, "gpt-4.1")
    assert rows["gpt-9"].capabilities.tools and not rows["gpt-9"].capabilities.images
    assert rows.keys() - packaged.keys() == {"gpt-9"}
    assert "gpt-9" in {m.name for e in topology(catalogue=str(path)).cloud for m in e.models}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("a: [", "is not YAML"),
        ("models: []", "providers: Field required"),
        ("providers: {nobody: []}", "no provider 'nobody'"),
        ("providers: {groq: [{name: a, context_tokens: 1}, {name: a, context_tokens: 1}]}", "the same name"),
        ("providers: {groq: [{name: a}]}", "model 'a' of 'groq': context_tokens: Field required"),
        ("providers: {groq: [{name: a, context_tokens: 1, price: {input: -1}}]}", "price.input"),
    ],
)
def test_a_wrong_file_is_told_where_and_what(text, said, tmp_path: Path):
    path = tmp_path / "catalogue.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=said) as refused:
        load_catalogue(path)
    assert str(path) in str(refused.value)


def test_what_the_documentation_shows_can_be_used(tmp_path: Path):
    text = (Path(__file__).parents[2] / "docs/providers.md").read_text()
    configuration, own = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    endpoints = topology(**configuration["args"]).cloud
    assert {"groq", "azure", "bedrock", "ollama", "our-vllm"} <= {endpoint.name for endpoint in endpoints}
    path = tmp_path / "catalogue.yaml"
    path.write_text(yaml.safe_dump(own))
    assert "gpt-9" in {entry.name for entry in load_catalogue(path)["openai"]}
    for provider in PROVIDERS:
        assert f"`{provider.name}`" in text
        assert all(variable in text for variable in provider.settings)


def test_capabilities_are_all_that_a_list_names():
    entry = ModelEntry(name="m", engine="gemini", context_tokens=1, capabilities=["tools"])
    assert entry.capabilities.tools and not entry.capabilities.seed and not entry.capabilities.temperature


def test_models_run_where_their_provider_does_unless_they_say_otherwise() -> None:
    models = [{"name": "a", "context_tokens": 10}, {"name": "b", "context_tokens": 10, "region": "us"}]
    endpoint = {"name": "own", "dialect": "openai", "base_url": "http://own", "api_key_env": None, "region": "eu"}
    (placed,) = resolved(
        Topology.model_validate({"cloud": [{**endpoint, "models": models}], "auto_providers": False})
    ).cloud
    assert [entry.region for entry in placed.models] == ["eu", "us"]
