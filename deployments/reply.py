"""What a Python caller gets back."""

from __future__ import annotations

from dataclasses import dataclass

from models.messages import Completion


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. `cache` is the verdict as in the header `x-switchyard-cache`; `request_id` finds the receipt."""

    request_id: str
    model: str
    cache: str
    cost_microusd: int
    completion: Completion

    @property
    def text(self) -> str:
        return self.completion.text
