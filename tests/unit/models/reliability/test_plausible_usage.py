from __future__ import annotations

from typing import Any

import pytest

from models.catalog import ModelEntry
from models.messages import Finish, TextDelta, Usage, UsageReport
from models.reliability.plausible_usage import PlausibleUsage
from models.reliability.tally import Tally
from tests.unit.models.reliability.scripted import Scripted, collect

ENTRIES = [ModelEntry(name="m", engine="openai_compatible", context_tokens=100)]


async def checked(*events: Any) -> tuple[UsageReport, dict[str, int]]:
    tally = Tally()
    last = (await collect(PlausibleUsage(Scripted([events]), ENTRIES, tally)))[-1]
    assert isinstance(last, UsageReport)
    return last, tally.snapshot()["usage_replaced"]


@pytest.mark.parametrize("usage", [Usage(9, 2), Usage(9, 2, 4, 3, 2, 2), Usage(200, 200)])
async def test_a_count_that_may_be_is_kept(usage: Usage) -> None:
    assert await checked(TextDelta("Hello"), Finish("stop"), UsageReport(usage)) == (UsageReport(usage), {})


@pytest.mark.parametrize(
    "usage",
    [
        Usage(-1, 2),
        Usage(9, -2),
        Usage("many", 2),  # type: ignore[arg-type]
        Usage(9, 2.5),  # type: ignore[arg-type]
        Usage(9, True),
        Usage(0, 2),
        Usage(9, 0),
        Usage(9, 2, cached_input_tokens=10),
        Usage(9, 2, reasoning_tokens=3),
        Usage(201, 2),
        Usage(9, 10**12),
    ],
)
async def test_a_count_that_cannot_be_becomes_an_estimate(usage: Usage) -> None:
    report, replaced = await checked(TextDelta("Hello"), Finish("stop"), UsageReport(usage))
    assert report == UsageReport(Usage(10, 2), estimated=True)
    assert replaced == {"m": 1}


async def test_an_empty_answer_takes_no_output() -> None:
    assert (await checked(Finish("stop"), UsageReport(Usage(9, 0))))[0] == UsageReport(Usage(9, 0))


async def test_an_early_count_may_be_of_the_prompt_only() -> None:
    early = UsageReport(Usage(9, 0), estimated=True)
    assert await checked(TextDelta("Hello"), early) == (early, {})
