"""kill -9 at bad moments, then the same command: finished stages stay, the bytes are those of an undisturbed run."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from s2l_ray.artifacts import find_artifact
from s2l_ray.storage import Storage
from tests.conftest import FinishedRun, command, run_s2l, write_config

pytestmark = pytest.mark.faults

WAIT_SECONDS = 400


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[bytes] | None" = None) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the awaited moment never came"
        assert process is None or process.poll() is None, "the run ended before the awaited moment"
        time.sleep(0.02)


def manifests(storage: Path) -> dict[str, dict[str, object]]:
    """Return every manifest without its `run` part, by address."""
    found = {}
    for path in sorted(storage.glob("*/*/manifest.json")):
        data = json.loads(path.read_text())
        data.pop("run")
        if data["artifact"] == "report":
            data.pop("files")  # it shows the seconds that the run took
        found[str(path.relative_to(storage))] = data
    return found


ORDER = ("examples", "eval_examples", "overlap", "tokenizer", "tokens", "proxy", "trajectories", "clusters", "subset")
ORDER += ("target", "scores", "comparison", "diagnostics", "report")
"""Artifacts of a run, in the order in which they are made."""


def copy_before(artifact: str, undisturbed: FinishedRun, folder: Path) -> Path:
    """Put what is made before an artifact where another run finds it; return the config of that run."""
    there = undisturbed.folder / "storage"
    assert {path.name for path in there.iterdir() if any(path.glob("*/manifest.json"))} <= set(ORDER)
    for name in ORDER[: ORDER.index(artifact)]:
        if (there / name).is_dir():
            shutil.copytree(there / name, folder / "storage" / name)
    return undisturbed.write_config(folder)


def at_work_on(storage: Path, artifact: str, sign: str) -> Callable[[], bool]:
    return lambda: any(storage.glob(f"{artifact}/*/attempt-*/{sign}"))


@pytest.mark.parametrize(
    ("artifact", "sign", "until"),
    [
        pytest.param("examples", "heartbeat.json", "tokenize_examples", marks=pytest.mark.slow),
        ("proxy", "step=000015/*.safetensors", "score_examples"),
        pytest.param("trajectories", "scratch/receipts/*.json", "select_subset", marks=pytest.mark.slow),
        pytest.param("clusters", "heartbeat.json", "select_subset", marks=pytest.mark.slow),
        pytest.param("target", "heartbeat.json", "write_report", marks=pytest.mark.slow),
        pytest.param("scores", "heartbeat.json", "write_report", marks=pytest.mark.slow),
        ("comparison", "arms.parquet", "write_report"),
    ],
)
def test_driver_killed_at_work_same_command_gives_the_same_bytes(
    artifact: str, sign: str, until: str, tmp_path: Path, finished_run: FinishedRun
) -> None:
    config, storage = copy_before(artifact, finished_run, tmp_path), tmp_path / "storage"
    # Where a stage runs changes no byte: the undisturbed run trained its proxy in a gang.
    arguments = ("run", str(config), "--json", "--until", until, "--set", "resources.train_proxy.launcher=task")
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL)
    wait_for(at_work_on(storage, artifact, sign), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = set(manifests(storage))
    done = run_s2l(*arguments)
    assert done.returncode == 0, done.stderr
    found, expected = manifests(storage), manifests(finished_run.folder / "storage")
    assert found == {path: expected[path] for path in found}
    assert until != "write_report" or found == expected
    assert len(json.loads(done.stdout)["ran"]) == len(found) - len(before) > 0


@pytest.mark.parametrize(
    ("stage", "artifact", "sign"),
    [
        # A checkpoint to go on from lies at step 10; weights of step 15 mean that it exists.
        pytest.param("train_proxy", "proxy", "step=000015/*.safetensors", marks=pytest.mark.slow),
        # DeepSpeed: the first file of the checkpoint at step 10, which may or may not be whole yet.
        ("finetune_target", "target", "scratch/train/checkpoint_*"),
    ],
)
def test_train_worker_killed_mid_run_goes_on_from_its_last_checkpoint(
    stage: str, artifact: str, sign: str, tmp_path: Path, finished_run: FinishedRun
) -> None:
    config, storage = copy_before(artifact, finished_run, tmp_path), tmp_path / "storage"
    process = subprocess.Popen(command("run", str(config), "--json", "--until", stage), stdout=subprocess.DEVNULL)
    wait_for(at_work_on(storage, artifact, sign), process)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in _title(p)]
    assert workers, "no training worker was found"
    for worker in workers:
        worker.kill()
    assert process.wait(timeout=WAIT_SECONDS) == 0
    found, expected = (
        {path: data for path, data in manifests(place).items() if path.startswith(f"{artifact}/")}
        for place in (storage, finished_run.folder / "storage")
    )
    assert found == expected


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _is_at_work(storage: Path, artifact: str, pid: int) -> bool:
    """Return whether this very process says so; what an earlier one left behind says nothing."""
    return any(f'"pid": {pid},' in path.read_text() for path in storage.glob(f"{artifact}/*/attempt-*/heartbeat.json"))


@pytest.fixture
def sigint() -> Iterator[None]:
    """Let children have SIGINT where a shell has begun these tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
def test_interrupted_run_exits_130_ends_its_ray_and_goes_on(tmp_path: Path, finished_run: FinishedRun) -> None:
    config, storage = copy_before("proxy", finished_run, tmp_path), tmp_path / "storage"
    arguments = ("run", str(config), "--json", "--until", "train_proxy")
    for asked in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wait_for(lambda pid=process.pid: _is_at_work(storage, "proxy", pid), process)  # type: ignore[misc]
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(asked)
        _, stderr = process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode == 130, stderr.decode()
        assert len(stderr.splitlines()) == 1, stderr.decode()
        assert b"same command" in stderr
        assert len(children) > 3
        assert psutil.wait_procs(children, timeout=WAIT_SECONDS)[1] == []
        assert not any(path.startswith("proxy/") for path in manifests(storage))
    assert run_s2l(*arguments).returncode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("sigint")
def test_second_ctrl_c_ends_at_once_and_the_same_command_goes_on(tmp_path: Path) -> None:
    config, storage = write_config(tmp_path), tmp_path / "storage"
    arguments = ("run", str(config), "--json", "--until", "train_proxy")
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(lambda: _is_at_work(storage, "proxy", process.pid), process)
    children = psutil.Process(process.pid).children(recursive=True)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode in (-signal.SIGINT, 130), stderr.decode()
    assert b"Traceback" not in stderr, stderr.decode()
    assert psutil.wait_procs(children, timeout=WAIT_SECONDS)[1] == []
    assert run_s2l(*arguments).returncode == 0


@pytest.mark.slow
def test_killed_sweep_goes_on_and_keeps_the_finished_trials(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    config = write_config(
        tmp_path,
        target={"engine": "torch", "steps": 60},
        evaluate={"metrics": ["loss"]},
        select={"method": "random"},
        resources={"finetune_target": {"launcher": "task"}},
        sweep={"max_concurrent": 1, "parameters": {"select.budget": [50, 100], "target.seed": [0, 1]}},
    )
    process = subprocess.Popen(command("sweep", str(config), "--json"), stdout=subprocess.DEVNULL)
    wait_for(lambda: any(path.startswith("scores/") for path in manifests(storage)), process)
    process.kill()
    process.wait()
    before = {path: (storage / path).stat().st_mtime_ns for path in manifests(storage)}
    done = run_s2l("sweep", str(config), "--json")
    assert done.returncode == 0, done.stderr
    assert {path: (storage / path).stat().st_mtime_ns for path in before} == before
    answer = json.loads(done.stdout)
    assert [trial["status"] for trial in answer["trials"]] == ["finished"] * 4
    assert answer["ran"] == 4 - sum(path.startswith("scores/") for path in before)
    assert len([path for path in manifests(storage) if path.startswith("target/")]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_killed_run_goes_on_with_its_adapter_to_the_bytes_of_an_undisturbed_one(engine: str, tmp_path: Path) -> None:
    target = {"engine": engine, "zero_stage": 2, "steps": 400, "lora": {"rank": 4}}
    found = {}
    for name in ("killed", "undisturbed"):
        folder = tmp_path / name
        folder.mkdir()
        config = write_config(folder, target=target, select={"method": "random"})
        arguments = ("run", str(config), "--json", "--until", "finetune_target")
        if name == "killed":
            process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL)
            snapshot = "scratch/train/checkpoint_manager_snapshot.json"
            wait_for(at_work_on(folder / "storage", "target", snapshot), process)
            process.kill()
            process.wait()
            assert not any(path.startswith("target/") for path in manifests(folder / "storage"))
        done = run_s2l(*arguments)
        assert done.returncode == 0, done.stderr
        found[name] = {path: data for path, data in manifests(folder / "storage").items() if path.startswith("target/")}
    assert found["killed"] == found["undisturbed"]


@pytest.mark.slow
def test_sharded_deepspeed_goes_on_with_as_many_workers_and_refuses_others_with_the_way_out(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    config = write_config(tmp_path, target={"zero_stage": 1, "steps": 400}, select={"method": "random"})
    arguments = ("run", str(config), "--json", "--until", "finetune_target")
    two = ("--set", "resources.finetune_target={workers: 2, cpus: 0.5}")
    process = subprocess.Popen(command(*arguments, *two), stdout=subprocess.DEVNULL)
    # Ray Train knows of a checkpoint.
    wait_for(at_work_on(storage, "target", "scratch/train/checkpoint_manager_snapshot.json"), process)
    process.kill()
    process.wait()
    one = run_s2l(*arguments)
    assert one.returncode == 1, one.stderr
    assert "saved by 2 workers" in one.stderr
    assert "workers: 2" in one.stderr
    assert "Traceback" not in one.stderr
    done = run_s2l(*arguments, *two)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_proxy_goes_on_with_fewer_workers_from_the_step_that_more_of_them_saved(tmp_path: Path) -> None:
    storage, steps = tmp_path / "storage", 400
    config = write_config(tmp_path, proxy={"steps": steps}, select={"method": "paper"})
    arguments = ("run", str(config), "--json", "--until", "train_proxy")
    two = ("--set", "resources.train_proxy={workers: 2, cpus: 0.5}")
    process = subprocess.Popen(command(*arguments, *two), stdout=subprocess.DEVNULL)
    # The second of the folders: the training state of the first has been saved.
    wait_for(lambda: len(list(storage.glob("proxy/*/attempt-*/step=*/*.safetensors"))) >= 3, process)
    process.kill()
    process.wait()
    first = min(storage.glob("proxy/*/attempt-*/step=*[1-9]*/*.safetensors"))
    saved = first.read_bytes()
    done = run_s2l(*arguments)
    assert done.returncode == 0, done.stderr
    assert first.read_bytes() == saved
    (metrics,) = storage.glob("proxy/*/attempt-*/metrics.jsonl")
    told = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert told == list(range(told[0], steps + 1, told[0]))


def test_two_runs_in_one_storage_make_every_artifact_once(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    arguments = ("run", str(config), "--json", "--until", "tokenize_examples")
    both = [subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=WAIT_SECONDS)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    ran = [label for answer in answers for label in answer["ran"]]
    storage = Storage.at(str(tmp_path / "storage"))
    made = [a for a in storage.list_folders() for f in storage.list_folders(a) if find_artifact(storage, a, f)]
    assert sorted(label.removeprefix("eval_") for label in ran) == sorted(a.removeprefix("eval_") for a in made)


@pytest.mark.slow
def test_proxy_trained_on_two_workers_has_another_address_for_its_trajectories(
    tmp_path: Path, finished_run: FinishedRun
) -> None:
    config = copy_before("proxy", finished_run, tmp_path)
    override = ["--set", "resources.train_proxy={workers: 2, cpus: 0.5}"]
    done = run_s2l("run", str(config), "--json", "--until", "score_examples", *override)
    assert done.returncode == 0, done.stderr
    here, there = manifests(tmp_path / "storage"), manifests(finished_run.folder / "storage")
    assert {p for p in here if p.startswith("proxy/")} == {p for p in there if p.startswith("proxy/")}
    assert {p for p in here if p.startswith("trajectories/")}.isdisjoint(there)
