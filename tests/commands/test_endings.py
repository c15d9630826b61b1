"""`switchyard up` that is stopped in its beginning, killed, or given what is wrong."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from cluster import state
from tests.commands.commands import CONFIG, Commands, session, wait_until

BEGUN = "starting the application"


def test_down_stops_also_what_has_not_started_yet(commands: Commands) -> None:
    with commands.up("--port", "0", until="starting Ray") as up:
        wait_until(lambda: state.find(commands.data_dir) is not None, 10.0)
        started = commands.cluster()
        assert commands.run("down").stdout == "stopped\n"
        assert up.wait(1.0) == 0
        assert session(started.ray_pid) == []
    assert commands.run("down").returncode == 0


def test_what_a_killed_cluster_leaves_behind_is_cleaned_up(commands: Commands) -> None:
    with commands.up("--port", "0", until=BEGUN) as up:
        cluster = commands.cluster()
        os.kill(up.pid, signal.SIGKILL)
        up.wait()
        status = commands.run("status")
        assert status.returncode == 1 and "no cluster runs" in status.stderr
        wait_until(lambda: session(cluster.ray_pid) == [], 15.0)
        assert not Path(cluster.scratch_dir).exists()


def test_a_wrong_configuration_is_one_line_and_starts_nothing(commands: Commands) -> None:
    (commands.folder / "serve_config.yaml").write_text(CONFIG.replace("engine: simulated", "engine: steam"))
    done = commands.run("up", "--port", "0")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "args: local_models.0.entry.engine: Input should be" in done.stderr
    assert "starting Ray" not in done.stdout
