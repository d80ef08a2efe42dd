"""What a plan will take: tokens and passes by hand, and what follows from a measured pace."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from s2l_ray.config import PoolResources, TrainResources
from s2l_ray.estimates import Pace, Task, estimates, state_bytes, table_of, task_of
from tests.unit.test_plan import node_of, pipeline_of

ROWS, TOKENS = 1000, 20_000


@dataclass
class Tokens:
    summary: dict[str, Any] = field(default_factory=lambda: {"rows_kept": ROWS, "tokens": TOKENS})


def task(stage_artifact: str, *sets: str, workers: int = 1, demand: Any = None) -> Task:
    node = node_of(pipeline_of("", *sets), stage_artifact)
    return task_of(node, Tokens(), demand or TrainResources(workers=workers), workers)


@pytest.mark.parametrize(
    ("sets", "tokens"),
    [
        (["proxy.epochs=3"], 3 * TOKENS),
        (["proxy.steps=10", "proxy.global_batch_size=32"], 320 * TOKENS / ROWS),
    ],
)
def test_proxy_reads_its_rows_as_often_as_it_is_trained_on_them(sets, tokens):
    assert task("proxy", *sets).tokens == pytest.approx(tokens)


def test_scoring_passes_once_per_checkpoint_and_once_before():
    sets = ["proxy.epochs=1", "proxy.global_batch_size=100", "proxy.micro_batch_size=10"]
    assert task("trajectories", *sets, "proxy.checkpoints=5").tokens == 6 * TOKENS
    # Ten steps have no more than ten checkpoints.
    assert task("trajectories", *sets, "proxy.checkpoints=50").tokens == 11 * TOKENS
    assert task("hidden_states", *sets, "select.method=facility_location").tokens == TOKENS


@pytest.mark.parametrize(
    ("sets", "rows"),
    [
        (["select.budget=0.1", "target.epochs=2"], 200),
        (["select.budget=300", "target.epochs=1"], 300),
        (['select.budget="5k tokens"', "target.epochs=1"], 250),
        (["select.budget=0.1", "target.epochs=2", "target.match=tokens"], 2000),
        (["select.budget=0.1", "target.steps=7", "target.global_batch_size=32"], 224),
        (["select.method=full", "target.epochs=2"], 2000),
    ],
)
def test_target_reads_its_share_as_often_as_match_says(sets, rows):
    assert task("target", *sets).tokens == pytest.approx(rows * TOKENS / ROWS)


def test_time_follows_from_the_pace_and_hours_from_all_processors():
    asked = TrainResources(workers=4, cpus=2)
    (found,) = estimates(
        {"proxy": task("proxy", "proxy.epochs=3", workers=4, demand=asked)}, {"proxy": Pace(1000, 1000, 500.0, 1 << 30)}
    )
    assert found.seconds == pytest.approx(3 * TOKENS / 500 / 4)
    assert found.unit_hours == pytest.approx(found.seconds * 8 / 3600)
    assert (found.unit, found.is_measured, found.flops) == ("CPU hours", True, 6 * 1000 * 3 * TOKENS)
    on_gpus = TrainResources(workers=4, cpus=2, gpus=1)
    (found,) = estimates({"proxy": task("proxy", workers=4, demand=on_gpus)}, {"proxy": Pace(1000, 1000, 500.0, 1)})
    assert found.unit == "GPU hours"
    assert found.unit_hours == pytest.approx(found.seconds * 4 / 3600)


def test_model_that_was_too_large_to_time_goes_by_the_flops_of_another():
    tasks = {"proxy": task("proxy"), "target": task("target", "select.method=full", "target.epochs=3")}
    paces = {"proxy": Pace(1000, 1000, 600.0, 1 << 30), "target": Pace(50_000, 50_000, None, None)}
    _, target = estimates(tasks, paces)
    assert target.seconds == pytest.approx(3 * TOKENS / (600 / 50))
    assert not target.is_measured
    (alone,) = estimates({"target": tasks["target"]}, {"target": paces["target"]})
    assert alone.seconds is None
    heads, rows = table_of([target, alone])
    assert len(heads) == len(rows[0])
    assert "about" in rows[0][3]
    assert "over" in rows[0][5]
    assert rows[1][3] == "?"


@pytest.mark.parametrize(("stage", "held"), [(0, 16.0), (1, 4 + 4 + 8 / 4), (2, 4 + (4 + 8) / 4), (3, (4 + 4 + 8) / 4)])
def test_zero_divides_moments_gradients_and_weights_over_the_workers(stage, held):
    one = task("target", "target.engine=deepspeed", f"target.zero_stage={stage}", workers=4)
    pace = Pace(1 << 20, 1 << 20, 10.0, 100 << 20)
    assert state_bytes(one, pace) == 16 << 20
    assert state_bytes(one, pace, 4) == held * 2**20
    (found,) = estimates({"target": one}, {"target": pace})
    assert found.memory == (100 - 16 + held) * 2**20


def test_adapter_has_gradients_and_moments_of_its_own_weights_only():
    one = task("target", "target.lora={rank: 4}")
    assert state_bytes(one, Pace(1000, 10, 1.0, 1)) == 4 * 1000 + 12 * 10
    assert one.flops_per_parameter == 4


def test_reading_holds_weights_only():
    one = task("trajectories", demand=PoolResources())
    assert state_bytes(one, Pace(1000, 1000, 1.0, 1)) == 4000
    assert one.flops_per_parameter == 2
