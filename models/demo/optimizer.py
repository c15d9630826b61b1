"""Muon for the matrices, AdamW for the rest. Not compared with AdamW alone here.

Source: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024). torch's own Muon computes in
bfloat16, which a CPU without AVX-512 does twenty times slower than float32.
"""

from __future__ import annotations

from typing import Any

_MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic iteration in the source above
_ITERATIONS = 5


class Optimizer:
    """`step(scale)` updates with both learning rates times `scale` and clears the gradients."""

    def __init__(self, model: Any, learning_rate: float, embedding_rate: float, weight_decay: float = 0.01) -> None:
        import torch

        self._matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
        self._momentum = [torch.zeros_like(p) for p in self._matrices]
        self._adam = torch.optim.AdamW(others, lr=embedding_rate, betas=(0.9, 0.98), weight_decay=weight_decay)
        self._learning_rate, self._embedding_rate, self._weight_decay = learning_rate, embedding_rate, weight_decay

    def step(self, scale: float) -> None:
        import torch

        for group in self._adam.param_groups:
            group["lr"] = self._embedding_rate * scale
        self._adam.step()
        with torch.no_grad():
            rate = self._learning_rate * scale
            for parameter, momentum in zip(self._matrices, self._momentum, strict=True):
                momentum.lerp_(parameter.grad, 1 - _MOMENTUM)
                update = _orthogonal(parameter.grad.lerp(momentum, _MOMENTUM))
                parameter.mul_(1 - rate * self._weight_decay)
                parameter.add_(update, alpha=-rate * max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5)
                parameter.grad = None
        self._adam.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"momentum": self._momentum, "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for momentum, saved in zip(self._momentum, state["momentum"], strict=True):
            momentum.copy_(saved)
        self._adam.load_state_dict(state["adam"])


def _orthogonal(matrix: Any) -> Any:
    """The nearest matrix with all singular values near 1, by Newton-Schulz iteration."""
    a, b, c = _NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
