"""The command: exit codes, what goes to stdout, and that a mistake is one message and no traceback."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import s2l_ray
from s2l_ray import cli, commands
from s2l_ray.artifacts import find_artifact
from s2l_ray.attempts import begin
from s2l_ray.errors import ArtifactError, ConfigError, DataError, S2LError, StageFailed
from s2l_ray.storage import Storage

ROOT = Path(s2l_ray.__file__).parent.parent
QUICKSTART = str(ROOT / "workflows" / "quickstart.yaml")
FINGERPRINT = "0" * 32


@pytest.fixture
def storage(tmp_path, monkeypatch) -> Storage:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    return Storage.at(str(tmp_path / "storage"))


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def abandoned_attempt(storage: Storage) -> Path:
    output = begin(storage, "proxy", FINGERPRINT)
    output.write_bytes("a", b"x")
    return Path(output.uri)


def committed_artifact(storage: Storage) -> Path:
    output = begin(storage, "clusters", FINGERPRINT)
    output.commit([output.write_bytes("a", b"x")], config={}, inputs={}, summary={"rows": 1}, run={"finished": "now"})
    return Path(storage.uri_of("clusters", FINGERPRINT))


# --------------------------------------------------------------------------------------------------------------- plan


def test_plan_exits_0_and_names_what_would_run(capsys, storage):
    code, out, err = run(capsys, "plan", QUICKSTART, "--storage", storage.uri)
    assert (code, out) == (0, "")
    assert all(label in err for label in ("proxy [s2l]", "subset [random]", "comparison", "s2l run"))
    assert not Path(storage.uri).exists()


def test_plan_json_is_one_object_and_nothing_else(capsys, storage):
    code, out, err = run(capsys, "plan", QUICKSTART, "--storage", storage.uri, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert len(out.splitlines()) == 1
    assert data["storage"] == storage.uri
    assert {node["state"] for node in data["nodes"]} == {"will run"}
    assert set(data["nodes"][0]) == {"artifact", "stage", "state", "why"}


def test_plan_after_json_speaks_again(capsys, storage):
    run(capsys, "plan", QUICKSTART, "--storage", storage.uri, "--json")
    _, _, err = run(capsys, "plan", QUICKSTART, "--storage", storage.uri)
    assert "comparison" in err


def test_next_command_is_about_the_same_storage_and_settings(capsys, tmp_path):
    place = str(tmp_path / "sp ace")
    _, _, err = run(capsys, "plan", QUICKSTART, "--storage", place, "--set", "seed=3", "--set", 'select.budget="5k"')
    line = err.splitlines()[-1].partition("Next: ")[2]
    assert shlex.split(line) == [
        *("s2l", "run", QUICKSTART, "--set", "seed=3", "--set", 'select.budget="5k"', "--storage", place)
    ]


def test_plan_takes_set_lines(capsys, storage):
    code, out, _ = run(
        capsys,
        "plan",
        QUICKSTART,
        "--storage",
        storage.uri,
        "--json",
        "--set",
        "select.method=random",
        "--set",
        "seed=3",
    )
    assert code == 0
    assert "proxy" not in {node["artifact"] for node in json.loads(out)["nodes"]}


@pytest.mark.parametrize(
    "name", ["sp ace", "ünï-数据", "emoji 😀", 'it\'s "quoted"', "back\\slash", "a: b", "#x", "%y"]
)
def test_storage_option_takes_any_path(capsys, tmp_path, name):
    code, out, _ = run(capsys, "plan", QUICKSTART, "--json", "--storage", str(tmp_path / name))
    assert code == 0
    assert json.loads(out)["storage"] == str(tmp_path / name)


def test_output_shows_no_password_of_a_uri(capsys, tmp_path):
    code, out, err = run(capsys, "plan", QUICKSTART, "--json", "--set", "storage=nope://user:canary@bucket/x")
    assert code == 2
    assert "canary" not in out + err
    assert "nope" in err


# ------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--set", "cluster.n_cluster=5"], "n_clusters"),
        (["--set", "cluster.n_clusters=0"], "cluster.n_clusters"),
        (["--set", "seed"], "--set"),
        (["--set", "storage=/dev/null/x"], "/dev/null"),
        (["--storage", "/dev/null"], "/dev/null"),
        (["--set", "examples={path: /nowhere.jsonl}"], "/nowhere.jsonl"),
    ],
)
@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_config_wrong_exits_2_with_one_message_on_stderr(capsys, storage, arguments, named, json_option):
    base = [] if "--storage" in arguments else ["--storage", storage.uri]
    if arguments[1].startswith("storage="):
        base = []
    code, out, err = run(capsys, "plan", QUICKSTART, *base, *arguments, *json_option)
    assert (code, out) == (2, "")
    assert named in err
    assert "Traceback" not in err


def test_config_missing_exits_2(capsys, tmp_path):
    code, out, err = run(capsys, "plan", str(tmp_path / "nowhere.yaml"))
    assert (code, out) == (2, "")
    assert "nowhere.yaml" in err


def test_config_with_two_mistakes_says_both(capsys, storage):
    _, _, err = run(capsys, "plan", QUICKSTART, "--set", "cluster.x=1", "--set", "select.budget=0")
    assert "cluster.x" in err
    assert "select.budget" in err


def test_relative_storage_in_a_submitted_job_exits_2(capsys, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    code, _, err = run(capsys, "plan", QUICKSTART)
    assert code == 2
    assert "absolute" in err


@pytest.mark.parametrize("command", ["run", "stage"])
def test_stage_unknown_exits_2_and_lists_the_stages_before_ray_starts(capsys, storage, command):
    arguments = [QUICKSTART, "--until", "clusters"] if command == "run" else ["clusters", QUICKSTART]
    code, _, err = run(capsys, command, *arguments, "--storage", storage.uri)
    assert code == 2
    assert "cluster_trajectories" in err
    assert not Path(storage.uri).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["nonsense"], ["plan"], ["plan", QUICKSTART, "--nonsense"], ["run", QUICKSTART, "--until"], ["inspect"]),
        *(["stage", "train_proxy"], ["plan", QUICKSTART, "extra"]),
    ],
)
def test_arguments_wrong_exit_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_help_exits_0_and_names_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("plan", "run", "stage", "submit", "inspect", "gc"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (DataError("x", [1]), 2),
        (ArtifactError("x"), 1),
        (StageFailed("x"), 1),
        (S2LError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_code_of_every_error(capsys, monkeypatch, error, code):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(commands, "load_sparse", fail)
    found, out, err = run(capsys, "plan", QUICKSTART)
    assert (found, out) == (code, "")
    assert err


def test_interrupt_says_how_to_go_on(capsys, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "load_sparse", interrupt)
    _, _, err = run(capsys, "plan", QUICKSTART)
    assert "same command" in err


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_command_with_130_and_one_line(tmp_path, asked):
    config = tmp_path / "never-written.yaml"
    os.mkfifo(config)
    process = subprocess.Popen(
        [sys.executable, "-m", "s2l_ray", "plan", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    writer = os.open(config, os.O_WRONLY)  # opens when the command has: now it waits for the text
    process.send_signal(asked)
    out, err = process.communicate(timeout=120)
    os.close(writer)
    assert (process.returncode, out) == (130, "")
    assert len(err.splitlines()) == 1
    assert asked.name in err


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_the_command_at_once(asked):
    code = (
        "import signal\n"
        "from s2l_ray.cli import _interruptible\n"
        "try:\n"
        f"    with _interruptible(): signal.raise_signal({int(asked)})\n"
        f"except KeyboardInterrupt: signal.raise_signal({int(asked)})\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False)
    assert (process.returncode, process.stderr) == (-asked, b"")


def test_command_leaves_signals_as_they_were_and_an_ignored_one_ignored(monkeypatch):
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    seen = []
    monkeypatch.setattr(commands, "load_sparse", lambda *_: seen.append(signal.getsignal(signal.SIGINT)))
    try:
        with pytest.raises(AttributeError):
            cli.main(["plan", QUICKSTART])
        assert seen == [signal.SIG_IGN]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_fault_of_ours_is_not_swallowed(monkeypatch):
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(commands, "load_sparse", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["plan", QUICKSTART])


def test_error_message_is_escaped(capsys):
    _, _, err = run(capsys, "plan", "\x1b[31m[bold]:car:")
    assert "\\x1b[31m[bold]:car:" in err
    assert "\x1b[31m" not in err


def test_reader_of_the_output_that_has_gone_is_no_error(tmp_path):
    read, write = os.pipe()
    os.close(read)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.run(
        [sys.executable, "-m", "s2l_ray", "plan", QUICKSTART, "--json", "--storage", str(tmp_path)],
        env=buffered,
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        check=False,
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (0, b"")


def test_module_is_the_command_and_returns_its_code(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "s2l_ray", "plan", str(tmp_path / "nowhere.yaml")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert "Traceback" not in process.stderr


# ------------------------------------------------------------------------------------------------------------- submit


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "relative"),
        (["--storage", "/absolute", "--set", "cluster.n_cluster=5"], "n_clusters"),
        (["--storage", "/absolute", "--runtime-env", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--storage", "/absolute", "--runtime-env", "list.yaml"], "list.yaml"),
        (["--storage", "/absolute"], "--address"),
        (["--storage", "s3://user:canary@bucket/x", "--address", "http://127.0.0.1:9"], "password"),
        (["--storage", "/absolute", "--address", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["--storage", "/absolute", "--address", "nonsense"], "nonsense"),
    ],
)
def test_submit_of_what_cannot_be_exits_2_with_one_message(capsys, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    (tmp_path / "quickstart.yaml").write_text(Path(QUICKSTART).read_text())
    (tmp_path / "list.yaml").write_text("[1]")
    code, out, err = run(capsys, "submit", "quickstart.yaml", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert named in err
    assert "canary" not in err


def test_submit_of_a_config_that_the_job_would_not_get_exits_2(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "submit", QUICKSTART, "--storage", "/absolute", "--address", "http://127.0.0.1:9")
    assert code == 2
    assert "outside the current directory" in err


# ----------------------------------------------------------------------------------------------------------------- gc


def test_gc_dry_run_removes_nothing_and_gc_then_removes_the_abandoned_only(capsys, storage):
    attempt, kept = abandoned_attempt(storage), committed_artifact(storage)
    code, _, err = run(capsys, "gc", "--storage", storage.uri, "--dry-run")
    assert code == 0
    assert str(attempt) in err
    assert attempt.is_dir()
    code, _, err = run(capsys, "gc", "--storage", storage.uri)
    assert code == 0
    assert str(attempt) in err
    assert not attempt.exists()
    assert (kept / "manifest.json").is_file()
    assert find_artifact(storage, "clusters", FINGERPRINT).damaged_files() == []


def test_gc_json_is_one_object(capsys, storage):
    attempt = abandoned_attempt(storage)
    code, out, err = run(capsys, "gc", "--storage", storage.uri, "--dry-run", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"removed": [f"proxy/{FINGERPRINT}/{attempt.name}"], "dry_run": True}
    _, out, _ = run(capsys, "gc", "--storage", storage.uri, "--json")
    assert json.loads(out)["dry_run"] is False
    _, out, _ = run(capsys, "gc", "--storage", storage.uri, "--json")
    assert json.loads(out)["removed"] == []


def test_gc_of_a_folder_that_is_no_storage_touches_nothing(capsys, tmp_path):
    file = tmp_path / "project" / "src" / "deep" / "main.py"
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    assert run(capsys, "gc", "--storage", str(tmp_path))[0] == 0
    assert run(capsys, "gc", "--storage", str(tmp_path / "project"))[0] == 0
    assert file.read_text() == "precious"


# -------------------------------------------------------------------------------------------------------------- inspect


def test_inspect_shows_an_artifact(capsys, storage):
    folder = committed_artifact(storage)
    code, out, err = run(capsys, "inspect", str(folder))
    assert (code, out) == (0, "")
    assert all(word in err for word in ("clusters", FINGERPRINT, "good"))


def test_inspect_json_is_one_object(capsys, storage):
    folder = committed_artifact(storage)
    code, out, err = run(capsys, "inspect", "--json", str(folder))
    assert (code, err) == (0, "")
    assert json.loads(out)["checksums"] == "good"


def test_inspect_shows_a_storage(capsys, storage):
    committed_artifact(storage)
    code, _, err = run(capsys, "inspect", storage.uri)
    assert code == 0
    assert f"clusters/{FINGERPRINT}" in err


@pytest.mark.parametrize("folder", ["/nowhere/at/all", "/dev/null", ""])
def test_inspect_of_nonsense_exits_2(capsys, folder):
    code, out, _ = run(capsys, "inspect", folder)
    assert (code, out) == (2, "")


def test_inspect_of_a_torn_manifest_exits_1(capsys, storage):
    folder = committed_artifact(storage)
    (folder / "manifest.json").write_text("{")
    code, _, err = run(capsys, "inspect", str(folder))
    assert code == 1
    assert "manifest.json" in err
