from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.bench import memory
from cluster.bench.connection import RequestFailed
from cluster.bench.session import exit_code, first_in_line, waited_s, write_json
from cluster.checks import StartError


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [StartError("no memory"), RequestFailed("no answer")])
def test_what_went_wrong_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: fail(error)) == 1
    assert capsys.readouterr().err == f"error: {error}\n"


def test_sigterm_ends_a_measurement_like_ctrl_c_and_lets_it_clean_up() -> None:
    cleaned = []

    def measure() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert exit_code(measure) == 130
    assert cleaned and signal.getsignal(signal.SIGTERM) == before
    assert exit_code(lambda: None) == 0


def test_the_client_goes_first_only_while_it_measures() -> None:
    before = os.sched_getscheduler(0)
    with first_in_line():
        child = subprocess.run(
            [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"], capture_output=True, check=True
        )
    assert int(child.stdout) == os.SCHED_OTHER  # what it starts meanwhile has no such right
    assert os.sched_getscheduler(0) == before


def test_waiting_only_grows() -> None:
    assert 0 <= waited_s() <= waited_s()


def test_figures_are_written_to_a_new_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "figures.json", {"a": 1})
    write_json(None, {})
    assert json.loads((tmp_path / "new" / "figures.json").read_text()) == {"a": 1}


def test_the_memory_of_a_session_is_that_of_all_its_processes() -> None:
    grandchild = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    leader = subprocess.Popen([sys.executable, "-c", grandchild], stdin=subprocess.PIPE, start_new_session=True)
    try:
        while len(memory._members(leader.pid)) < 2:
            assert leader.poll() is None
        assert memory._pss_kb(leader.pid)["Ray and Serve themselves"] > 1000
    finally:
        leader.communicate(b"\n")


def test_memory_is_told_by_part() -> None:
    assert memory._part("ray::ServeReplica:switchyard:LLMServer:phi-2") == "LLMServer:phi-2"
    assert memory._part("VLLM::EngineCore") == "VLLM::EngineCore"
    assert memory._part("ray::IDLE") == "Ray and Serve themselves"
