"""Right or wrong, decided by rule: every demo question has an answer that is known."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from models.demo.code_check import passes

Rule = Literal["exact", "number", "sequence", "set", "regex", "code"]
Case = tuple[tuple[Any, ...], Any]


@dataclass(frozen=True, slots=True)
class Grader:
    """`want` is the answer (exact), the last number (number), items between commas (sequence: in this order, set: in
    any), a pattern for the whole answer (regex) or the function's name (code, with the `cases` it must pass)."""

    rule: Rule
    want: str
    cases: tuple[Case, ...] = ()

    def grade(self, answer: str) -> bool:
        match self.rule:
            case "exact":
                return normalised(answer) == normalised(self.want)
            case "number":
                numbers = re.findall(r"-?\d+(?:\.\d+)?", answer)
                return bool(numbers) and float(numbers[-1]) == float(self.want)
            case "sequence":
                return _parts(answer) == _parts(self.want)
            case "set":
                return sorted(_parts(answer)) == sorted(_parts(self.want))
            case "regex":
                return re.fullmatch(self.want, answer.strip(), re.IGNORECASE | re.DOTALL) is not None
            case "code":
                return passes(answer, self.want, self.cases)

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.rule, "want": self.want, "cases": [[list(given), wanted] for given, wanted in self.cases]}


def grader_from_json(value: dict[str, Any]) -> Grader:
    cases = tuple((tuple(given), wanted) for given, wanted in value.get("cases", ()))
    return Grader(value["rule"], value["want"], cases)


def normalised(text: str) -> str:
    """Without quotes, outer punctuation and doubled spaces. Case stays: an upper-case task would pass by itself."""
    return re.sub(r"\s+", " ", text.replace('"', "").replace("`", "")).strip().strip(".!?").strip()


def _parts(text: str) -> list[str]:
    text = normalised(text).replace(" and ", ", ")
    return [part.strip() for part in text.split(",") if part.strip()]
