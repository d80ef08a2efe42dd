"""What Ray Train is asked for: a gang's workers, their processors, and how they talk to one another."""

import pytest

from s2l_ray.attempts import begin
from s2l_ray.config import TrainResources
from s2l_ray.stages import runtime
from s2l_ray.stages.launch import TrainingRun, _trainer
from s2l_ray.stages.local_trainer import NOT_NEEDED
from s2l_ray.storage import Storage


@pytest.mark.parametrize(
    ("gpus", "backend"),
    [(0, "gloo"), (1, "nccl"), (0.5, "gloo")],  # NCCL refuses two workers on one GPU
)
def test_workers_with_gpus_of_their_own_talk_by_nccl(gpus, backend, tmp_path):
    output = begin(Storage(str(tmp_path)), "proxy", "0" * 32)
    run = TrainingRun(lambda job: None, None, 1, "train proxy")
    trainer = _trainer(run, output, TrainResources(workers=4, gpus=gpus, cpus=2, custom={"nvme": 1}))
    assert trainer.backend_config.backend == backend
    asked = trainer.scaling_config
    assert (asked.num_workers, asked.use_gpu) == (4, gpus > 0)
    assert asked.resources_per_worker == {"CPU": 2, "nvme": 1} | ({"GPU": gpus} if gpus else {})


def test_gang_on_a_ray_of_our_own_goes_without_two_helpers_and_keeps_the_others(tmp_path, monkeypatch):
    output = begin(Storage(str(tmp_path)), "proxy", "0" * 32)
    run = TrainingRun(lambda job: None, None, 1, "train proxy")
    helpers = {}
    for ours in (False, True):
        monkeypatch.setattr(runtime, "ends_with_us", lambda ours=ours: ours)
        helpers[ours] = {
            type(each).__name__ for each in _trainer(run, output, TrainResources())._create_default_callbacks()
        }
    assert helpers[False] - helpers[True] == set(NOT_NEEDED)
    assert "BackendSetupCallback" in helpers[True]
