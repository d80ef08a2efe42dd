"""Trackers: what each was told is read back from what it wrote."""

import time

from s2l_ray.config import TrackingConfig
from s2l_ray.tracking import Tracked, flat, trackers

TOLD = Tracked(
    "quick-s2l",
    {"seed": 0, "cluster.n_clusters": 100},
    {"proxy": {10: 3.5, 20: 2.25}, "target": {10: 4.0}},
    {"macro_loss": 1.5, "rows": 1200.0},
)


def tell(to, uri):
    config = TrackingConfig(to=(to,), uri=str(uri), project="told")
    for tracker in trackers(config):
        tracker.tell(TOLD)


def test_tensorboard_has_losses_by_step_and_final_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell("tensorboard", tmp_path)
    read = EventAccumulator(str(tmp_path / "quick-s2l"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("proxy/loss")] == [(10, 3.5), (20, 2.25)]
    assert [(event.step, event.value) for event in read.Scalars("target/loss")] == [(10, 4.0)]
    assert read.Scalars("final/macro_loss")[0].value == 1.5
    assert b"cluster.n_clusters" in read.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_mlflow_has_a_run_with_parameters_losses_and_metrics(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database would need more packages
    uri = (tmp_path / "mlruns").as_uri()
    tell("mlflow", uri)
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("told").experiment_id])
    assert run.info.run_name == "quick-s2l"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0", "cluster.n_clusters": "100"}
    assert run.data.metrics["macro_loss"] == 1.5
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "proxy/loss")] == [
        (10, 3.5),
        (20, 2.25),
    ]


def test_wandb_keeps_a_run_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tell("wandb", tmp_path)
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 30  # its own process writes, in its own time
    words = (b"quick-s2l", b"cluster.n_clusters", b"proxy/loss", b"2.25", b"target/loss", b"macro_loss", b"1200")
    while missing := [word for word in words if word not in written.read_bytes()]:
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)


def test_settings_are_flattened_by_path():
    assert flat({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}
