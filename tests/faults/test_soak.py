"""A seeded soak: drivers, workers, actors and nodes are killed at random until the run is done, whatever that takes.

`S2L_SOAK_KILLS` and `S2L_SOAK_SEED` make it longer, and another one.
"""

import os
import random
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import command, run_s2l, write_config
from tests.faults.test_kills import manifests
from tests.nodes import Nodes

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("S2L_SOAK_KILLS", "20"))
SEED = int(os.environ.get("S2L_SOAK_SEED", "0"))
LIMIT_SECONDS = 90 * KILLS
QUICKSTART = {
    "examples": {"synthetic": {"rows": 3000, "skills": 28}},
    "proxy": {"steps": 240},
    "score": {"shard_rows": 300},
    "target": {"steps": 160},
    "arms": {"s2l": {"select.method": "paper"}, "random": {"select.method": "random"}},
}


class Soak:
    """Runs that are started anew whenever they have been killed, and what kills them."""

    def __init__(self, nodes: Nodes) -> None:
        self._random = random.Random(SEED)
        self._nodes = nodes
        self._workers = [nodes.add(1), nodes.add(1)]
        self.killed: list[str] = []

    def run(self, config: Path) -> None:
        """Bring a run to its end, whatever is killed meanwhile."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            assert time.monotonic() < deadline, f"no end after {self.killed}"
            driver = subprocess.Popen(command("run", str(config), "--set", f"resources.address={self._nodes.address}"))
            while driver.poll() is None and len(self.killed) < KILLS:
                self._pause(driver)
                if driver.poll() is None:
                    self._kill(driver)
            code = driver.wait(LIMIT_SECONDS)
            assert code in (0, 1, -9), f"exit {code} after {self.killed}"
            if code == 0:
                return

    def _pause(self, driver: "subprocess.Popen[bytes]") -> None:
        until = time.monotonic() + self._random.uniform(1, 12)
        while time.monotonic() < until and driver.poll() is None:
            time.sleep(0.1)

    def _kill(self, driver: "subprocess.Popen[bytes]") -> None:
        kind = self._random.choice(["driver", "worker", "worker", "node"])
        if kind == "driver":
            driver.kill()
            driver.wait()
        elif kind == "node":
            place = self._random.randrange(len(self._workers))
            self._nodes.kill(self._workers[place])
            self._workers[place] = self._nodes.add(1)
        else:
            found = sorted(self._nodes.worker_processes(), key=lambda process: process.pid)
            if not found:
                return
            victim = self._random.choice(found)
            try:
                kind = victim.cmdline()[0]
                victim.kill()
            except psutil.NoSuchProcess:
                return
        self.killed.append(kind)


def test_a_run_that_is_killed_again_and_again_ends_with_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    (tmp_path / "quiet").mkdir()
    quiet = run_s2l("run", str(write_config(tmp_path / "quiet", **QUICKSTART)))
    assert quiet.returncode == 0, quiet.stderr
    undisturbed = manifests(tmp_path / "quiet" / "storage")
    with Nodes(head_cpus=1) as nodes:
        soak, rounds = Soak(nodes), 0
        while len(soak.killed) < KILLS:
            rounds += 1
            (folder := tmp_path / f"round-{rounds}").mkdir()
            soak.run(write_config(folder, **QUICKSTART))
            assert manifests(folder / "storage") == undisturbed
    print(f"{len(soak.killed)} kills over {rounds} runs: {soak.killed}")
