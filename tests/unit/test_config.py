"""What the configuration says of local models."""

from __future__ import annotations

import pytest

from models.catalog import BUILT_IN, ENGINE_CAPABILITIES
from router.topology import LocalModel


@pytest.mark.parametrize("name", [entry.name for entry in BUILT_IN])
@pytest.mark.parametrize("engine", list(ENGINE_CAPABILITIES))
def test_on_another_engine_a_model_can_do_what_that_engine_can(name: str, engine: str) -> None:
    own = next(entry for entry in BUILT_IN if entry.name == name)
    resolved = LocalModel(name=name, engine=engine).resolve()
    assert resolved.engine == engine and resolved.source == own.source
    if engine == own.engine:
        assert resolved == own
    else:
        assert resolved.capabilities == ENGINE_CAPABILITIES[engine] and resolved.tool_parser is None


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(ValueError, match="demo-small"):
        LocalModel(name="nobody").resolve()
