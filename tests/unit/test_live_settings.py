from __future__ import annotations

import logging

import pytest

from deployments.live_settings import LiveSettings
from router.settings import BatcherSettings


def _not_seven(settings: BatcherSettings) -> None:
    if settings.max_queue == 7:
        raise ValueError("seven is taken")


@pytest.mark.parametrize("wrong", [{"max_queue": -1}, {"maxqueue": 1}, {"max_queue": 7}])
def test_a_starting_replica_refuses_and_a_running_one_keeps_what_it_has(
    wrong: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    live = LiveSettings(BatcherSettings, _not_seven)
    with pytest.raises(ValueError):
        live.accept(wrong)
    accepted = live.accept({"max_queue": 5})
    assert accepted is not None and accepted.max_queue == 5
    with caplog.at_level(logging.ERROR, "ray.serve"):
        assert live.accept(wrong) is None
    assert live.rejected == 1 and "stays in force" in caplog.text
    assert live.accept({"max_queue": 6}) is not None


def test_the_log_does_not_quote_what_was_configured(caplog: pytest.LogCaptureFixture) -> None:
    live = LiveSettings(BatcherSettings)
    live.accept({})
    with caplog.at_level(logging.ERROR, "ray.serve"):
        live.accept({"max_queue": "a secret"})
    assert "max_queue" in caplog.text and "a secret" not in caplog.text
