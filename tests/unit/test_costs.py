"""The cost ledger on artifacts made by hand: what selecting costs, what a subset saves, and when it has paid."""

import json
import struct

import pyarrow as pa
import pytest

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact
from s2l_ray.attempts import begin
from s2l_ray.costs import count_parameters, ledger
from s2l_ray.storage import Storage


def safetensors(shapes: dict[str, list[int]]) -> bytes:
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    data = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(data)) + data


class Made:
    def __init__(self, storage: Storage) -> None:
        self.storage, self.count = storage, 0

    def __call__(self, name: str, seconds: float, summary: dict, files=lambda output: []) -> Artifact:
        self.count += 1
        output = begin(self.storage, name, f"{self.count:032x}")
        records = files(output)
        return output.commit(records, config={}, inputs={}, summary=summary, run={"seconds": seconds})


@pytest.fixture
def make(tmp_path) -> Made:
    return Made(Storage.at(str(tmp_path)))


def proxy_files(output):
    rows = [
        {"index": 0, "step": 0, "epoch": 0.0, "learning_rate": 0.0, "mean_loss": None},
        {"index": 1, "step": 10, "epoch": 2.0, "learning_rate": 0.1, "mean_loss": 1.0},
    ]
    table = pa.Table.from_pylist(rows, schema=schemas.CHECKPOINTS)
    weights = safetensors({"a": [10, 10]})  # 100 parameters
    return [
        output.write_parquet("checkpoints.parquet", [table], schemas.CHECKPOINTS),
        output.write_bytes("step=000010/model.safetensors", weights),
        output.write_bytes("step=000000/model.safetensors", weights),
    ]


def target(make: Made, seconds: float, rows_seen: int, *more: str) -> Artifact:
    weights = safetensors({"a": [100, 10]})  # 1,000 parameters
    paths = ("model/m.safetensors", *more)
    return make("target", seconds, {"rows_seen": rows_seen}, lambda o: [o.write_bytes(p, weights) for p in paths])


def selected(make: Made, rows_seen: int = 200) -> dict[str, Artifact]:
    return {
        "proxy": make("proxy", 30.0, {"checkpoint_steps": [10]}, proxy_files),
        "proxy_tokens": make("tokens", 1.0, {"tokens": 5_000}),
        "trajectories": make("trajectories", 20.0, {}),
        "clusters": make("clusters", 9.0, {}),
        "subset": make("subset", 1.0, {"rows": 100, "rows_pool": 1_000, "target_tokens": 600}),
        "target": target(make, 40.0, rows_seen),
    }


def test_parameters_are_counted_from_the_headers_of_one_folder(make):
    assert count_parameters(make("proxy", 0.0, {}, proxy_files), "step=000010/") == 100


def test_ledger_counts_seconds_tokens_and_flops_of_every_piece(make):
    found = ledger(selected(make), None, by_epochs=True)
    assert [(w.name, w.seconds) for w in found.selecting] == [
        ("train proxy", 30.0),
        ("score", 20.0),
        ("cluster", 9.0),
        ("draw", 1.0),
    ]
    proxy, scoring = found.selecting[:2]
    assert (proxy.tokens, proxy.flops) == (10_000, 6 * 100 * 10_000)  # two epochs of 5,000 tokens
    assert (scoring.tokens, scoring.flops) == (10_000, 2 * 100 * 10_000)  # before training and one checkpoint
    assert (found.target.tokens, found.target.flops) == (1_200, 6 * 1_000 * 1_200)  # 6 tokens a row, 200 rows seen


def test_an_adapter_costs_a_third_less_for_weights_that_get_no_gradient(make):
    made = selected(make)
    full = ledger(made, None, by_epochs=True).target
    adapted = ledger({**made, "target": target(make, 40.0, 200, "adapter/a.safetensors")}, None, by_epochs=True).target
    assert adapted.tokens == full.tokens
    assert adapted.flops * 3 == full.flops * 2


def test_subset_of_a_tenth_by_epochs_saves_nine_tenths_and_breaks_even(make):
    found = ledger(selected(make), None, by_epochs=True)
    assert (found.full.seconds, found.full_is_measured) == (400.0, False)
    assert found.saved_seconds == 360.0
    assert found.break_even == pytest.approx(60 / 360)
    # Selecting: 8e6 FLOPs; a fine-tuning saves 10,800 tokens, at the proxy's 600 FLOPs each 6.48e6.
    assert found.break_even_ratio == pytest.approx(8e6 / 6.48e6)


def test_equal_steps_save_nothing_whatever_the_clock_says(make):
    arm = selected(make)
    full = {
        "subset": make("subset", 1.0, {"rows": 1_000, "rows_pool": 1_000, "target_tokens": 6_000}),
        "target": target(make, 55.0, 200),
    }
    found = ledger(arm, full, by_epochs=False)
    assert found.full_is_measured
    assert found.saved_seconds == 15.0
    assert (found.saves, found.break_even, found.break_even_ratio) == (False, None, None)


def test_random_arm_has_nothing_to_pay_off(make):
    arm = {name: artifact for name, artifact in selected(make).items() if name in ("subset", "target")}
    found = ledger(arm, None, by_epochs=True)
    assert [work.name for work in found.selecting] == ["draw"]
    assert found.break_even_ratio is None
