"""A disk that is full or may not be written to: one message, and the same command goes on when there is room."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import may_unshare, write_config

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not may_unshare(), reason="needs the right to mount a file system over a folder (unshare -m)"),
]


@pytest.mark.slow
def test_run_on_a_full_disk_ends_with_one_message_and_goes_on_with_room(tmp_path: Path) -> None:
    config, storage = write_config(tmp_path), tmp_path / "storage"
    storage.mkdir()
    run = f"{sys.executable} -m s2l_ray run {config} --json --until train_proxy"
    # Room for the examples and their tokens, but not for six checkpoints of a model.
    script = f"""
        mount -t tmpfs -o size=400k none {storage}
        {run} 2> {tmp_path}/full.txt; echo $? > {tmp_path}/full.code
        ls {storage}/proxy/*/manifest.json 2>/dev/null
        mount -o remount,size=100M {storage}
        {run} 2> {tmp_path}/room.txt; echo $? > {tmp_path}/room.code
    """
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    said = (tmp_path / "full.txt").read_text()
    assert (tmp_path / "full.code").read_text() == "1\n", said
    assert "Traceback" not in said
    assert "No space left" in said
    assert str(storage) in said
    assert "same command" in said
    assert "manifest.json" not in done.stdout
    assert (tmp_path / "room.code").read_text() == "0\n", (tmp_path / "room.txt").read_text()


def test_storage_that_may_not_be_written_to_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config, storage = write_config(tmp_path), tmp_path / "storage"
    storage.mkdir()
    script = f"mount --bind -o ro {storage} {storage} && exec {sys.executable} -m s2l_ray run {config} --json"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert str(storage) in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
