from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from models.encoder import Encoder
from router.cache_eval import Bench, answer, chat_request, replies


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def bench(encoder: Encoder) -> Bench:
    return Bench(encoder)


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0.0, **more}


def test_a_stored_question_is_found_again_and_another_is_not(bench: Bench) -> None:
    asked = body("How many legs does a spider have?")
    assert bench.lookup(asked)["hit"] is False
    bench.insert(asked, "k1")
    assert bench.lookup(asked) == {"hit": True, "key": "k1", "similarity": None, "score": None}
    again = bench.lookup(body("how many legs does a spider have?"))
    assert (again["hit"], again["key"]) == (True, "k1") and again["similarity"] > 0.9
    assert not bench.lookup(body("How many legs does an ant have?"))["hit"]
    assert not bench.lookup({**asked, "max_tokens": 5})["hit"]


def test_what_was_inserted_without_a_lookup_is_found_by_meaning(bench: Bench) -> None:
    bench.insert(body("How many legs does a spider have?"), "k1")
    bench.insert(body("Why is the sky blue?"), "k2")
    assert bench.lookup(body("why is the sky blue"))["key"] == "k2"


def test_settings_come_with_the_reset_and_empty_it(bench: Bench) -> None:
    bench.insert(body("Why is the sky blue?"), "k1")
    assert answer(bench, '{"op": "reset", "params": {"semantic_cache": false}}') == {"ok": True}
    bench.insert(body("Why is the sky blue?"), "k1")
    assert bench.lookup(body("Why is the sky blue?"))["hit"]
    assert not bench.lookup(body("why is the sky blue"))["hit"]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"op": "fly"}', '{"op": "reset", "params": {"no_such": 1}}', '{"op": "lookup", "body": {"audio": 1}}'],
)
def test_a_line_that_is_not_understood_says_so(bench: Bench, line: str) -> None:
    assert "error" in answer(bench, line)


def test_a_body_is_read_as_the_door_reads_it() -> None:
    from deployments.openai.chat_schema import parse_chat

    plain = body("hi", max_tokens=7, stop="x", n=2, seed=3, logprobs=True, response_format={"type": "json_object"})
    ours, doors = chat_request(plain), parse_chat(plain).request
    assert (ours.messages, ours.sampling) == (doors.messages, doors.sampling)


def test_it_speaks_lines() -> None:
    asked = body("Why is the sky blue?")
    sent = [
        {"op": "lookup", "body": asked},
        {"op": "insert", "body": asked, "key": "k"},
        {"op": "lookup", "body": asked},
    ]
    lines = "\n".join(map(json.dumps, sent))
    command = [sys.executable, "-m", "router.cache_eval"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, timeout=120)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each.get("hit") for each in said] == [False, None, True]


def test_an_empty_line_is_passed_over(bench: Bench) -> None:
    assert list(replies(iter(["\n", '{"op": "reset", "params": {}}\n']), bench)) == ['{"ok": true}']
