"""A run as a job of a Ray cluster: exit codes, logs, `ray job stop`, tokens, and what the job gets to see."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.conftest import TINY, command
from tests.faults.test_kills import WAIT_SECONDS, at_work_on, wait_for
from tests.nodes import free_ports

TOKEN = "a-token-of-the-tests-" + 22 * "0"
BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]

Done = subprocess.CompletedProcess[str]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Head:
    """A Ray cluster of one node, with a job server on loopback."""

    def __init__(self, folder: Path, token: str | None) -> None:
        self.folder = folder  # of a short name: Ray's sockets lie below it
        auth = {"RAY_AUTH_MODE": "disabled", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        if token:
            (folder / "token").write_text(token)
            auth |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        gcs, dashboard, client, agent, agent_grpc = free_ports(5)
        self.url, self.token = f"http://127.0.0.1:{dashboard}", token
        # A job's `python` is the one on the PATH of the head.
        self.environment = {**os.environ, **auth, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [
                *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
                *(f"--port={gcs}", f"--ray-client-server-port={client}", f"--temp-dir={folder}"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
                f"--object-store-memory={150 * 2**20}",
            ],
            env=self.environment,
            stdout=(folder / "head.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        self.environment["RAY_API_SERVER_ADDRESS"] = self.url
        wait_for(lambda: "Ray runtime started" in (folder / "head.log").read_text(), self.process)

    def start(self, *arguments: str, cwd: Path, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            arguments,
            cwd=cwd,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *arguments: str, cwd: Path, **environment: str) -> Done:
        process = self.start(*arguments, cwd=cwd, **environment)
        out, err = process.communicate(timeout=WAIT_SECONDS)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def job_submit(self, *line: str, cwd: Path) -> Done:
        return self.call(str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--", *line, cwd=cwd)

    def ask(self, method: str, path: str) -> Any:
        request = urllib.request.Request(f"{self.url}/api/jobs/{path}", method=method)
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
            return json.load(answer)

    def jobs(self) -> list[dict[str, Any]]:
        return sorted((job for job in self.ask("GET", "") if job["submission_id"]), key=lambda job: job["start_time"])

    def log_of(self, job: str) -> str:
        (path,) = self.folder.glob(f"session_2*/logs/job-driver-{job}.log")
        return path.read_text()

    def stop(self) -> None:
        family = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for child in psutil.wait_procs(family[1:], timeout=10)[1]:
            child.kill()


def head_with(token: str | None) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    head = Head(folder, token)
    try:
        yield head
    finally:
        head.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    yield from head_with(TOKEN)


def write_tiny(folder: Path) -> Path:
    """Write a config without a storage: that is on the command line, as it should be."""
    proxy = {**TINY["proxy"], "steps": 120}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "proxy": proxy}, sort_keys=False))
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_tiny(tmp_path)


def line(storage: Path, *more: str) -> tuple[str, ...]:
    return ("python", "-m", "s2l_ray", "run", "tiny.yaml", "--storage", str(storage), "--until", "train_proxy", *more)


def submit(storage: Path, *more: str) -> list[str]:
    return command("submit", "tiny.yaml", "--storage", str(storage), "--until", "train_proxy", *more)


def times(storage: Path) -> dict[str, int]:
    return {path.parent.parent.name: path.stat().st_mtime_ns for path in storage.glob("*/*/manifest.json")}


@dataclass
class Stopped:
    """A job that was stopped while it trained the proxy, and the same line again."""

    storage: Path
    code: int
    shown: str
    log: str
    before: dict[str, int]
    again: Done
    log_again: str


@pytest.fixture(scope="module")
def stopped(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    storage, project = tmp_path_factory.mktemp("storage"), write_tiny(tmp_path_factory.mktemp("project"))
    following = head.start(*submit(storage), cwd=project)
    wait_for(at_work_on(storage, "proxy", "step=000020/*.safetensors"), following)
    (job,) = [job["submission_id"] for job in head.jobs()]
    # What `ray job stop` asks for: its own start takes longer than this training.
    assert head.ask("POST", f"{job}/stop")["stopped"]
    shown, err = following.communicate(timeout=WAIT_SECONDS)
    assert shown == ""
    before = times(storage)
    again = head.job_submit(*line(storage), cwd=project)
    log_again = head.log_of(head.jobs()[-1]["submission_id"])
    return Stopped(storage, following.returncode, err, head.log_of(job), before, again, log_again)


def test_stopped_job_says_how_to_go_on_and_leaves_no_half_artifact(stopped: Stopped) -> None:
    assert stopped.code == 130, stopped.shown
    assert stopped.log.splitlines()[-1].startswith("error: interrupted by SIGTERM")
    assert "same command" in stopped.log
    assert stopped.log.splitlines()[-1] in stopped.shown
    assert "***" not in stopped.log
    assert "tokens" in stopped.before
    assert "proxy" not in stopped.before


def test_same_line_again_goes_on_and_exits_0(stopped: Stopped) -> None:
    assert stopped.again.returncode == 0, stopped.again.stdout + stopped.again.stderr
    after = times(stopped.storage)
    assert stopped.before.items() < after.items()
    assert "proxy" in after


def test_log_of_a_job_is_plain_lines_and_reaches_the_submitter_whole(stopped: Stopped) -> None:
    assert not set(stopped.log + stopped.log_again) & {"\r", "\x1b"}
    assert all(text in stopped.again.stdout for text in stopped.log_again.splitlines()[1:])


def test_submit_of_what_is_there_runs_nothing_and_answers_one_object(
    head: Head, project: Path, stopped: Stopped
) -> None:
    before = times(stopped.storage)
    done = head.call(*submit(stopped.storage, "--json"), cwd=project)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["job"]) == ("SUCCEEDED", head.jobs()[-1]["submission_id"])
    assert times(stopped.storage) == before


def test_relative_storage_is_refused_by_the_job_and_by_submit(head: Head, project: Path) -> None:
    done = head.job_submit(*line(Path("storage")), cwd=project)
    job = head.jobs()[-1]
    assert (done.returncode, job["status"], job["driver_exit_code"]) == (1, "FAILED", 2)
    log = head.log_of(job["submission_id"])
    assert log.count("error:") == 1
    assert "absolute path" in log
    refused = head.call(*submit(Path("storage")), cwd=project)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "absolute path" in refused.stderr
    assert head.jobs()[-1] == job


def test_exit_codes_of_a_job_are_those_of_submit(head: Head, project: Path, stopped: Stopped, tmp_path: Path) -> None:
    wrong = head.call(*submit(stopped.storage, "--set", "examples={path: nowhere.jsonl}"), cwd=project)
    assert wrong.returncode == 2
    assert "nowhere.jsonl" in wrong.stderr
    assert "Traceback" not in wrong.stderr

    damaged = tmp_path / "damaged"
    shutil.copytree(stopped.storage, damaged)
    for file in damaged.glob("tokens/*/*/tokens-*.parquet"):
        file.write_bytes(file.read_bytes()[:-7])
    failed = head.call(*submit(damaged, "--set", "proxy.steps=31"), cwd=project)
    assert failed.returncode == 1
    assert "checksum" in failed.stderr


def test_ctrl_c_leaves_the_job_alone(head: Head, project: Path, stopped: Stopped) -> None:
    following = head.start(*submit(stopped.storage), cwd=project)
    assert following.stderr is not None
    shown = following.stderr.readline()
    job = head.jobs()[-1]["submission_id"]
    assert job in shown
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=WAIT_SECONDS)
    assert following.returncode == 130
    assert "ray job stop" in err
    wait_for(lambda: head.jobs()[-1]["status"] == "SUCCEEDED")


def test_cluster_that_refuses_the_token_is_one_message(head: Head, project: Path) -> None:
    (project / "token").write_text("b" + TOKEN)
    jobs = len(head.jobs())
    for wrong in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN_PATH": str(project / "token")}):
        done = head.call(*submit(project / "storage"), cwd=project, **wrong)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "RAY_AUTH_TOKEN" in done.stderr
        assert TOKEN not in done.stderr
    assert len(head.jobs()) == jobs


def test_job_gets_neither_storages_nor_tests_nor_caches(head: Head, project: Path) -> None:
    shutil.copy(ROOT / ".rayignore", project)
    (project / ".gitignore").write_text("data/\n")
    wanted = {"tiny.yaml", "s2l_ray/cli.py", "workflows/my.yaml", "rows.parquet", ".rayignore", ".gitignore"}
    for name in (
        *(wanted - {".rayignore", ".gitignore", "tiny.yaml"}),
        *(".git/HEAD", ".s2l/proxy/x/manifest.json", ".s2l-old/a", "tests/unit/a.py", "data/rows.jsonl"),
        *("s2l_ray/__pycache__/cli.pyc", ".mypy_cache/a", ".hypothesis/b", "x.egg-info/PKG-INFO", ".venv/bin/python"),
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    done = head.job_submit("find", ".", "-type", "f", cwd=project)
    assert done.returncode == 0
    log = head.log_of(head.jobs()[-1]["submission_id"])
    assert {name[2:] for name in log.splitlines() if name.startswith("./")} == wanted


def test_job_on_a_cluster_without_tokens(project: Path) -> None:
    for head in head_with(None):
        done = head.job_submit(*line(project / "storage"), cwd=project)
        assert done.returncode == 0, done.stdout + done.stderr
