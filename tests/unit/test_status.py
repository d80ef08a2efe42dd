"""What a run says about itself, from the storage alone."""

import json

from s2l_ray.attempts import at_work, begin, find_or_make
from s2l_ray.cli import main
from s2l_ray.log import display
from s2l_ray.plan import build_pipeline
from s2l_ray.status import status
from s2l_ray.storage import Storage
from tests.unit import tiny


def pipeline():
    return build_pipeline(tiny.parse(tiny.SYNTHETIC, "select.method=random"))


def test_a_fresh_storage_has_all_to_come(tmp_path):
    lines = list(status(pipeline(), Storage(str(tmp_path))))
    assert lines[0].artifact == "examples"
    assert {line.state for line in lines} == {"to come"}


def test_what_is_in_the_making_says_how_far_it_is_and_what_is_done_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("s2l_ray.staged_output.HEARTBEAT_SECONDS", 0.05)
    storage, nodes = Storage(str(tmp_path)), pipeline()
    examples = nodes.nodes[0]
    fingerprint = examples.fingerprint({}, None)
    seen = []

    def make(output):
        with display.progress("prepare examples", 40, "rows") as progress:
            progress.update(0)
            progress.update(10)
            while not (now := at_work(storage, "examples", fingerprint)) or not now.doing:
                pass
            seen.append(next(status(nodes, storage)))
        return tiny.commit(output, run={"seconds": 75.0})

    made = find_or_make(storage, "examples", fingerprint, make)
    assert seen[0].state == "at work"
    assert "prepare examples: 10/40 rows (25%)" in seen[0].says
    lines = list(status(nodes, storage))
    assert (lines[0].state, lines[0].says) == ("done", f"1 min 15 s, {made.uri}")
    assert lines[1].state == "to come"


def test_an_attempt_that_was_given_up_is_not_at_work(tmp_path):
    storage, nodes = Storage(str(tmp_path)), pipeline()
    fingerprint = nodes.nodes[0].fingerprint({}, None)
    with begin(storage, "examples", fingerprint).alive(lambda: "never mind"):
        assert next(status(nodes, storage)).state == "at work"
    assert next(status(nodes, storage)).state == "to come"
    assert at_work(storage, "examples", "f" * 32) is None


def test_the_command_prints_a_line_per_artifact_and_the_counts(tmp_path, capsys):
    config = tmp_path / "exp.yaml"
    config.write_text(tiny.SYNTHETIC + "select: {method: random}\n")
    assert main(["status", str(config), "--storage", str(tmp_path / "storage"), "--json"]) == 0
    nodes = json.loads(capsys.readouterr().out)["nodes"]
    assert {node["state"] for node in nodes} == {"to come"}
    assert nodes[0]["stage"] == "prepare_examples"
    assert main(["status", str(config), "--storage", str(tmp_path / "storage")]) == 0
    assert f"0 done, 0 at work, {len(nodes)} to come" in capsys.readouterr().err
