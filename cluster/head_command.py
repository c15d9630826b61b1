"""`switchyard head`: what a model answers well, learned from hundreds of labelled outcomes."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.labels import Labelled, labelled, prompts_by_request
from cluster.logged import rows_of
from models.errors import InvalidRequest
from router.learned.fitting import Outcome, fit_head
from router.learned.heads import load_head


def make_head(
    model: str, labels: Path | None, log: Path | None, prompts: Path | None, start: str | None, out: Path
) -> str:
    """From JSON lines `{"prompt", "good"}`, and from an export of the books: what callers said of answers of `model`,
    whose prompts are not in the books and so have to be in `prompts`. `start`: another model's head to begin with.
    Raises `InvalidRequest` for files that cannot be used, or too few outcomes."""
    if (log is None) != (prompts is None):
        raise InvalidRequest("The books have no prompts: give --log and --prompts together, or --labels.")
    found = labelled(labels) if labels else []
    if log is not None and prompts is not None:
        found += _rated(log, prompts, model)
    try:
        begun = load_head(start) if start is not None else None
        head, quality = fit_head([Outcome(messages, good) for messages, good in found], model, begun)
        head.save(out)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    except OSError as error:
        raise InvalidRequest(f"{out} cannot be written ({error.strerror}).") from None
    return "\n".join(
        (
            f"{quality.outcomes} outcomes, {quality.good:.1%} of them good",
            f"of wordings that the fit did not see: AUROC {quality.auroc:.3f}, ECE {quality.ece:.3f}; "
            f"the head speaks of {quality.within:.1%} of such prompts",
            f"{out}: {out.stat().st_size / 1024:.0f} KB",
            "For the user_config of ComplexityClassifier (or `head:` of the model's entry):",
            f"heads: {{{json.dumps(model)}: {json.dumps(str(out.absolute()))}}}",
        )
    )


def _rated(log: Path, prompts: Path, model: str) -> list[Labelled]:
    asked = prompts_by_request(prompts)
    rows = rows_of(log, ("request_id", "model", "status", "cache_verdict", "feedback"))
    return [
        (asked[row["request_id"]], float(row["feedback"]))
        for row in rows
        if row["model"] == model
        and row["status"] == "ok"
        and not row["cache_verdict"].startswith("hit")
        and row["feedback"] is not None
        and row["request_id"] in asked
    ]
