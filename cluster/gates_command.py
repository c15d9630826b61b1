"""`switchyard gates`: the thresholds of a cascade's gates, each learned from what callers said of a model's answers."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

from cluster.logged import rows_of
from models.errors import InvalidRequest
from router.accounting.feedback import wilson
from router.gates import auroc, threshold

LEAST_OUTCOMES = 50
"""Of a model, for a threshold. Of 50 answers 95 % good means 86 to 99 %."""
_COLUMNS = ("attempts", "model", "feedback", "status", "cache_verdict")


def gates(path: Path, target: float, org: str | None = None) -> str:
    """From an export of the books: answers that a gate judged and gave out, and that somebody rated. Raises
    `InvalidRequest` for a file that is no such export, and where no model has enough of them."""
    outcomes = _outcomes(path, org)
    told = [f"{'model':24}  rated   good  AUROC  threshold  given out  of it good (95 %)"]
    learned: dict[str, dict[str, float]] = {}
    for model, found in sorted(outcomes.items()):
        good = sum(value for _, value in found) / len(found)
        best = threshold(found, target) if len(found) >= LEAST_OUTCOMES else None
        start = f"{model:24} {len(found):6} {good:6.1%} {_or_dash(auroc(found)):>6}"
        if best is None:
            few = f"too few: {LEAST_OUTCOMES} are needed" if len(found) < LEAST_OUTCOMES else "none is good enough"
            told.append(f"{start}  {few}")
            continue
        given_out = [value for sureness, value in found if sureness >= best]
        low, high = wilson(sum(given_out), len(given_out))
        share = f"{len(given_out) / len(found):10.1%}  {sum(given_out) / len(given_out):.1%} ({low:.1%} to {high:.1%})"
        told.append(f"{start} {best:10.4g} {share}")
        learned[model] = {"min_mean_logprob": _rounded(best)}
    told.append("What a gate gave up nobody could rate, so no threshold below the one in force can be found.")
    if learned:
        told += ["For the user_config of Ingress:", f"routing: {{gates: {json.dumps(learned)}}}"]
    return "\n".join(told)


def _outcomes(path: Path, org: str | None) -> dict[str, list[tuple[float, float]]]:
    """By model: how sure it was, and how good its answer."""
    outcomes: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows_of(path, (*_COLUMNS, *(["org"] if org is not None else []))):
        if row["feedback"] is None or row["status"] != "ok" or row["cache_verdict"].startswith("hit"):
            continue
        if org not in (None, row.get("org")) or not (attempts := json.loads(row["attempts"] or "[]")):
            continue
        judged = attempts[-1].get("gate") or {}
        if attempts[-1]["model"] == row["model"] and judged.get("mean_logprob") is not None:
            outcomes[row["model"]].append((judged["mean_logprob"], row["feedback"]))
    if not outcomes:
        raise InvalidRequest(
            f"{path} has no rated answer that a gate judged by log probabilities: send requests with the strategy "
            "'cascade' and rate their answers (POST /v1/feedback)."
        )
    return outcomes


def _rounded(value: float) -> float:
    """Downwards, to four digits, so that the answer which it was learned from stays in."""
    digits = 3 - math.floor(math.log10(-value)) if value < 0 else 0
    scale: float = 10**digits
    return math.floor(value * scale) / scale


def _or_dash(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
