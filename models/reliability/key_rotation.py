"""Several keys of one provider, used in turn. One that is limited or refused rests while the others go on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from models.base import Call, ChatModel
from models.errors import ModelUnavailable, RateLimited, SwitchyardError, is_refusal
from models.messages import ChatRequest, Event
from models.reliability.settings import KeyRestSettings
from models.reliability.tally import Tally

_REFUSALS = {401, 402, 429}
"""Statuses that an account is at fault for, where they come as `ModelUnavailable` (429: its quota is used up)."""

log = logging.getLogger(__name__)


class _Key:
    def __init__(self, number: int, model: ChatModel) -> None:
        self.number, self.model = number, model
        self.limited_until_s: dict[str, float] = {}  # by model: providers limit each by itself
        self.refused_until_s = 0.0
        self.refusals = 0  # one after the other
        self.status = 0  # of the last one

    def rests_until_s(self, model: str) -> float:
        return max(self.refused_until_s, self.limited_until_s.get(model, 0.0))


class KeyRotation:
    """A `ChatModel` over the same endpoint's model with each of its keys, in turn.

    `name` is the endpoint's, for the log, in which keys are numbers. A request goes on to the next key when one is
    limited (429) or refused (401, 402, 403, quota) before its first event; each key is tried once. Where all rest it is
    `RateLimited` until the first one is back, or `ModelUnavailable` where none is merely limited. A key that got 403
    does not rest: that may be this request's, and the next one would find no key left.
    """

    def __init__(
        self,
        models: Sequence[ChatModel],
        name: str,
        settings: Callable[[], KeyRestSettings],
        tally: Tally,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = [_Key(number, model) for number, model in enumerate(models, 1)]
        self._name, self._settings, self._tally, self._clock = name, settings, tally, clock
        self._turn = 0

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        clock = asyncio.get_running_loop().time
        deadline_s, left_s, started = clock() + call.timeout_s, call.timeout_s, False
        refusal: SwitchyardError | None = None
        for key in self._in_turn():
            if key.rests_until_s(request.model) > self._clock():
                continue
            try:
                attempt = replace(call, timeout_s=left_s)
                async with aclosing(key.model.stream(request, attempt)) as events:  # type: ignore[type-var]
                    async for event in events:
                        if not started:
                            started, key.refusals = True, 0
                        yield event
                return
            except SwitchyardError as error:
                left_s = deadline_s - clock()
                if started or left_s <= 0:
                    raise
                if is_refusal(error):
                    refusal = error
                elif not self._rest(key, request.model, error):
                    raise
        raise refusal or self._all_rest(request.model)

    def resting(self) -> int:
        """How many keys cannot be used for some model just now."""
        now_s = self._clock()
        return sum(max(key.refused_until_s, *key.limited_until_s.values(), 0.0) > now_s for key in self._keys)

    def _in_turn(self) -> list[_Key]:
        turn, self._turn = self._turn, (self._turn + 1) % len(self._keys)
        return self._keys[turn:] + self._keys[:turn]

    def _rest(self, key: _Key, model: str, error: SwitchyardError) -> bool:
        """Set `key` aside if `error` is about it; False: it is not."""
        settings, now_s = self._settings(), self._clock()
        if isinstance(error, RateLimited):
            said_s = settings.limited_s if error.retry_after_s is None else error.retry_after_s
            key.limited_until_s[model] = now_s + min(said_s, settings.max_limited_s)
            self._tally.add("key_rests", "limited")
            return True
        if not isinstance(error, ModelUnavailable) or error.details.get("provider_status") not in _REFUSALS:
            return False
        rest_s = min(settings.max_refused_s, settings.refused_s * 2 ** min(key.refusals, 30))
        key.refused_until_s, key.refusals = now_s + rest_s, key.refusals + 1
        key.status = error.details["provider_status"]
        self._tally.add("key_rests", "refused")
        log.warning(
            "provider %s answered %s to key %d of %d; it rests for %.0f s",
            *(self._name, key.status, key.number, len(self._keys), rest_s),
        )
        return True

    def _all_rest(self, model: str) -> SwitchyardError:
        now_s = self._clock()
        back_in_s = max(0.0, min(key.rests_until_s(model) for key in self._keys) - now_s)
        if any(key.refused_until_s <= now_s for key in self._keys):
            return RateLimited(
                f"The provider of model '{model}' limits our rate on every key; wait and send the request again.",
                None,
                round(back_in_s, 3),
            )
        error = ModelUnavailable(
            f"The provider of model '{model}' refused every key; the operator should check the keys and the account. "
            "The caller's own key is not at fault.",
            None,
            round(back_in_s, 3),
        )
        error.details["provider_status"] = self._keys[0].status
        return error

    async def check_health(self) -> None:
        """Healthy if the provider is with one of the keys."""
        failure: SwitchyardError | None = None
        for key in self._keys:
            try:
                return await key.model.check_health()
            except SwitchyardError as error:
                failure = error
        assert failure is not None
        raise failure

    async def close(self) -> None:
        for key in self._keys:
            await key.model.close()
