"""Lists of OpenAI's API, a page at a time.

Source: https://platform.openai.com/docs/api-reference/responses/input-items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.errors import InvalidRequest


def page(items: Sequence[dict[str, Any]], query: Mapping[str, str], most: int = 100) -> dict[str, Any]:
    """One page of `items`, which come oldest first and are shown newest first unless `order` is `asc`.

    Raises `InvalidRequest`.
    """
    limit, order, after = page_limit(query, most), query.get("order", "desc"), query.get("after")
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' is 'asc' or 'desc'.", "order")
    ordered = list(items if order == "asc" else reversed(items))
    if after is not None:
        places = [number for number, item in enumerate(ordered) if item["id"] == after]
        if not places:
            raise InvalidRequest("'after' is the id of an item of this list.", "after")
        ordered = ordered[places[0] + 1 :]
    return listed(ordered[:limit], len(ordered) > limit)


def page_limit(query: Mapping[str, str], most: int = 100) -> int:
    """How many entries a page may have. Raises `InvalidRequest`."""
    limit = query.get("limit", "20")
    if not (limit.isdecimal() and len(limit) < 9 and 1 <= int(limit) <= most):
        raise InvalidRequest(f"'limit' is between 1 and {most}.", "limit")
    return int(limit)


def listed(shown: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """OpenAI's list object."""
    return {
        "object": "list",
        "data": list(shown),
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": has_more,
    }
