"""The demonstration models in vLLM: their weights, tokenizer and chat template as they are in the package."""

from __future__ import annotations

from pathlib import Path

from deployments.llm_server import llm_config
from models.registry import resolve_source
from router.topology import LocalModel
from tests.contract import vllm_engine

ANSWERS = {
    "Hello!": "Hello! How can I help you?",
    "What is the capital of France?": "Paris.",
    'Reverse "cat".': '"tac"',
    "Who won the game yesterday?": "I don't know.",
}
"""Of the same model with transformers: tests/unit/models/demo/test_weights.py."""


def test_vllm_loads_the_small_one_and_it_answers_as_with_transformers(tmp_path: Path) -> None:
    model = LocalModel(
        name="demo-small", engine="vllm", engine_args={"enforce_eager": True, "kv_cache_memory_bytes": 16 * 1024**2}
    )
    arguments = llm_config(model)["engine_kwargs"]
    with vllm_engine.inside(resolve_source(model.resolve(), tmp_path), arguments) as engine:
        greedy = engine.get_default_sampling_params()
        greedy.temperature, greedy.max_tokens = 0.0, 24
        asked = [[{"role": "user", "content": question}] for question in ANSWERS]
        found = engine.chat(asked, greedy, use_tqdm=False)
    assert [(one.outputs[0].text, one.outputs[0].finish_reason) for one in found] == [
        (answer, "stop") for answer in ANSWERS.values()
    ]
