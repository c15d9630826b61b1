"""The packaged encoder as an ONNX graph in memory, built from its safetensors when it is loaded.

No file is written and nothing is downloaded: the 90 MB of weights that come as a package become 24 MB of int8 in about
a second. So neither the repository has a second copy of the weights, nor the runtime a need for `onnx` or torch.

The graph is BERT's encoder (Devlin et al. 2018, arXiv:1810.04805) with mean pooling (Reimers and Gurevych 2019,
arXiv:1908.10084). Operators of the domain `com.microsoft` are those of ONNX Runtime:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from models.onnx_graph import Array, Graph

Precision = Literal["int8", "float32"]
MICROSOFT = "com.microsoft"
OPSETS = {"": 17, MICROSOFT: 1}
INPUT, OUTPUT = "input_ids", "vectors"


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a BERT encoder, from its config.json."""

    layers: int
    heads: int
    hidden: int
    epsilon: float


class _Builder:
    def __init__(self, weights: dict[str, Array], shape: Shape, precision: Precision) -> None:
        self.weights, self.shape, self.precision = weights, shape, precision
        self.graph = Graph("encoder")

    def build(self) -> bytes:
        graph, shape = self.graph, self.shape
        ids = graph.input(INPUT, "int64", ["batch", "tokens"])
        x = self._embedded(ids)
        for layer in range(shape.layers):
            x = self._layer(x, f"encoder.layer.{layer}.")
        mean = graph.node("ReduceMean", x, axes=[1], keepdims=0)
        graph.rename(graph.node("LpNormalization", mean, axis=-1, p=2), OUTPUT)
        graph.output(OUTPUT, "float32", ["batch", shape.hidden])
        return graph.model(OPSETS)

    def _embedded(self, ids: str) -> str:
        graph, weights = self.graph, self.weights
        words = self._rows(ids, weights["embeddings.word_embeddings.weight"])
        places = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        tokens = graph.node("Shape", ids, start=1, end=2)
        zero = graph.constant(np.zeros(1, np.int64))
        here = graph.node("Slice", graph.constant(places), zero, tokens, zero)
        return self._normal(graph.node("Add", words, here), "embeddings.LayerNorm")

    def _rows(self, ids: str, table: Array) -> str:
        """The rows of a table; as int8 each row has a scale of its own."""
        graph = self.graph
        if self.precision == "float32":
            return str(graph.node("Gather", graph.constant(table), ids))
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), 1e-12) / 127
        rows = graph.node("Gather", graph.constant(np.round(table / scale).astype(np.int8)), ids)
        scales = graph.node("Gather", graph.constant(scale.astype(np.float32)), ids)
        return str(graph.node("Mul", graph.node("Cast", rows, to=1), scales))

    def _layer(self, x: str, name: str) -> str:
        graph, own = self.graph, f"{name}attention.self."
        parts = ("query", "key", "value")
        weight = np.concatenate([self.weights[f"{own}{part}.weight"] for part in parts])
        bias = np.concatenate([self.weights[f"{own}{part}.bias"] for part in parts])
        query, key, value = graph.node("Split", self._linear(x, weight, bias), outputs=3, axis=-1)
        seen = graph.node("MultiHeadAttention", query, key, value, domain=MICROSOFT, num_heads=self.shape.heads)
        x = self._skip(self._named(seen, f"{name}attention.output.dense"), x, f"{name}attention.output.LayerNorm")
        wide = graph.node("Gelu", self._named(x, f"{name}intermediate.dense"), domain=MICROSOFT)
        return self._skip(self._named(wide, f"{name}output.dense"), x, f"{name}output.LayerNorm")

    def _named(self, x: str, name: str) -> str:
        return self._linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _linear(self, x: str, weight: Array, bias: Array) -> str:
        """`weight` is [out, in], as torch has it."""
        graph = self.graph
        if self.precision == "float32":
            product = graph.node("MatMul", x, graph.constant(np.ascontiguousarray(weight.T)))
            return str(graph.node("Add", product, graph.constant(bias)))
        return self._linear_int8(x, weight, bias)

    def _linear_int8(self, x: str, weight: Array, bias: Array) -> str:
        """A scale for each output, and one for all of `x`, found when it is run."""
        graph = self.graph
        scale = np.maximum(np.abs(weight).max(axis=1), 1e-12) / 127
        rounded = np.ascontiguousarray(np.round(weight / scale[:, None]).astype(np.int8).T)
        constants = (rounded, scale.astype(np.float32), np.zeros(len(scale), np.int8), bias)
        names = [graph.constant(each) for each in constants]
        return str(graph.node("DynamicQuantizeMatMul", x, *names, domain=MICROSOFT))

    def _normal(self, x: str, name: str) -> str:
        gamma, beta = (self.graph.constant(self.weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return str(self.graph.node("LayerNormalization", x, gamma, beta, axis=-1, epsilon=self.shape.epsilon))

    def _skip(self, x: str, skip: str, name: str) -> str:
        gamma, beta = (self.graph.constant(self.weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return str(
            self.graph.node(
                "SkipLayerNormalization", x, skip, gamma, beta, domain=MICROSOFT, epsilon=self.shape.epsilon
            )
        )


def encoder_model(folder: Path, precision: Precision = "int8") -> bytes:
    """The ONNX model of the BERT encoder in `folder`: `input_ids` int64 [batch, tokens] without padding, to `vectors`
    float32 [batch, hidden] of length 1. Raises OSError, KeyError or ValueError where `folder` has no such encoder."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
        raise ValueError(f"{folder} has no BERT encoder with GELU, which is the one that can be run as ONNX")
    shape = Shape(
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["hidden_size"],
        float(config["layer_norm_eps"]),
    )
    return _Builder(load_file(folder / "model.safetensors"), shape, precision).build()
