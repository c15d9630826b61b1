"""`user_config` on its way into a deployment that may already be running."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from router.strict import Strict

T = TypeVar("T", bound=Strict)
logger = logging.getLogger("ray.serve")


class LiveSettings(Generic[T]):
    """Lets only settings through that hold.

    A replica whose `reconfigure` raises is ended by Serve, and so are those that take its place, until none is left: a
    slip of the pen in a live configuration would shut the door. So only a replica that is just starting refuses to; one
    that runs keeps its old settings, says so in its log, and counts it in `rejected`. A deployment that uses this sets
    a `user_config`, if only an empty one: Serve calls `reconfigure` at the start of a replica only then.
    """

    def __init__(self, kind: type[T], check: Callable[[T], None] | None = None) -> None:
        """`check` raises ValueError for settings that do not fit the rest of the deployment."""
        self._kind, self._check = kind, check
        self._running = False
        self.rejected = 0

    def accept(self, user_config: dict[str, Any]) -> T | None:
        """The settings to put in force; None: keep those that are. Raises ValueError at a replica's start."""
        try:
            settings = self._kind.model_validate(user_config)
            if self._check is not None:
                self._check(settings)
        except ValueError as error:
            if not self._running:
                raise
            self.rejected += 1
            what = error.errors(include_input=False, include_url=False) if isinstance(error, ValidationError) else error
            logger.error("the new user_config is wrong, the old one stays in force: %s", what)
            return None
        self._running = True
        return settings
