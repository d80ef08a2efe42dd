"""What Ray Train is asked for: a gang's workers, their processors, and how they talk to one another."""

import pytest

from s2l_ray.attempts import begin
from s2l_ray.config import TrainResources
from s2l_ray.stages.launch import TrainingRun, _trainer
from s2l_ray.storage import Storage


@pytest.mark.parametrize(
    ("gpus", "backend"),
    [(0, "gloo"), (1, "nccl"), (2, "nccl"), (0.5, "gloo")],  # NCCL refuses two workers on one GPU
)
def test_workers_with_gpus_of_their_own_talk_by_nccl(gpus, backend, tmp_path):
    output = begin(Storage(str(tmp_path)), "proxy", "0" * 32)
    run = TrainingRun(lambda job: None, None, 1, "train proxy")
    trainer = _trainer(run, output, TrainResources(workers=4, gpus=gpus, cpus=2, custom={"nvme": 1}))
    assert trainer.backend_config.backend == backend
    asked = trainer.scaling_config
    assert (asked.num_workers, asked.use_gpu) == (4, gpus > 0)
    assert asked.resources_per_worker == {"CPU": 2, "nvme": 1} | ({"GPU": gpus} if gpus else {})
