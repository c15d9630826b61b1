"""A larger model that begins as a smaller trained one: it gives the same answers and has room to learn more.

What reads the new width is random and what writes into it is zero, so nothing changes at first and everything has a
gradient after one step. Source: Chen et al., "Net2Net" (2015), and Gesmundo and Maile, "Composable function-preserving
expansions for transformer architectures" (2023).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def grow(model: Any, folder: Path) -> None:
    """Puts the weights of the smaller model in `folder` into the corner of `model`, in place.

    `model` is a fresh Llama with the same tokenizer and head width, at least as wide and as deep.
    """
    import torch
    from safetensors.torch import load_file

    old = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    layers = model.config.num_hidden_layers
    old_layers = 1 + max(int(name.split(".")[2]) for name in old if name.startswith("model.layers."))
    came_from = {index * layers // old_layers: index for index in range(old_layers)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            source = _source(name, came_from)
            if _writes(name):
                parameter.zero_()
            if source is not None:
                _copy(parameter, old[source])


def _source(name: str, came_from: dict[int, int]) -> str | None:
    """The old name of a parameter; None in a layer that is new."""
    if not name.startswith("model.layers."):
        return name
    _, _, index, rest = name.split(".", 3)
    old = came_from.get(int(index))
    return None if old is None else f"model.layers.{old}.{rest}"


def _writes(name: str) -> bool:
    """Whether it adds to the residual stream."""
    return any(part in name for part in ("o_proj", "down_proj", "embed_tokens"))


def _copy(parameter: Any, old: Any) -> None:
    if old.ndim == 1:  # a norm: the mean square is now taken over more numbers, the new ones zero
        parameter[: len(old)] = old * (len(old) / len(parameter)) ** 0.5
    else:
        parameter[: old.shape[0], : old.shape[1]] = old
