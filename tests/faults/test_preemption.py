"""A spot node is taken away during training: a checkpoint at once, and on from the same step elsewhere."""

import json
import subprocess
import time
from copy import deepcopy
from pathlib import Path

import pytest

from tests.conftest import command, run_s2l, write_config
from tests.faults.test_kills import WAIT_SECONDS, manifests
from tests.nodes import Nodes

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

SPOT = {"custom": {"spot": 1}, "max_failures": 0, "checkpoint_every": 10**6}
"""No failure is forgiven, and no checkpoint is due before the end: what is gone on from was saved on notice."""
STEPS = 8000


def step_of(storage: Path, artifact: str) -> int:
    """Return how far the training of an artifact says it is."""
    for path in storage.glob(f"{artifact}/*/attempt-*/heartbeat.json"):
        doing = json.loads(path.read_text() or "{}").get("doing", "")
        if f"/{STEPS} steps" in doing:
            return int(doing.partition("/")[0].rpartition(" ")[2])
    return 0


def steps_until(step: int, storage: Path, artifact: str, process: "subprocess.Popen[bytes]") -> list[int]:
    """Return the steps that a training says it is at, until it has come to one."""
    deadline, seen = time.monotonic() + WAIT_SECONDS, [0]
    while seen[-1] < step:
        assert time.monotonic() < deadline, f"{artifact} never came to step {step}"
        assert process.poll() is None, "the run ended before the awaited moment"
        time.sleep(0.2)
        seen.append(step_of(storage, artifact))
    return seen[1:]


def write(folder: Path) -> Path:
    folder.mkdir()
    resources = {"train_proxy": deepcopy(SPOT), "finetune_target": SPOT, "wait_seconds": 120}
    return write_config(folder, proxy={"steps": STEPS}, target={"steps": STEPS}, resources=resources)


def test_training_goes_on_elsewhere_at_the_same_step_with_the_same_bytes(tmp_path: Path) -> None:
    disturbed, storage = write(tmp_path / "disturbed"), tmp_path / "disturbed" / "storage"
    with Nodes(head_cpus=2) as nodes:
        node = nodes.add(1, '{"spot": 1}')
        process = subprocess.Popen(command("run", str(disturbed), "--set", f"resources.address={nodes.address}"))
        for artifact in ("proxy", "target"):
            noticed = steps_until(200, storage, artifact, process)[-1]
            nodes.take_away(node)
            node.wait(60)
            reached = step_of(storage, artifact)
            assert noticed < reached < STEPS, "the node should have gone in the middle of the training"
            node = nodes.add(1, '{"spot": 1}')
            assert min(steps_until(reached + 200, storage, artifact, process)) >= noticed
        assert process.wait(WAIT_SECONDS) == 0
        quiet = write(tmp_path / "quiet")
        done = run_s2l("run", str(quiet), "--set", f"resources.address={nodes.address}")
        assert done.returncode == 0, done.stderr
    assert manifests(storage) == manifests(tmp_path / "quiet" / "storage")
