"""What a run says about itself to Prometheus: a real head is scraped while real stages run on it."""

import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from s2l_ray.experiment import load_experiment
from s2l_ray.plan import build_pipeline
from s2l_ray.stages.run import Runner
from s2l_ray.storage import Storage
from tests.conftest import write_config

EXPECTED = {
    ("s2l_rows", "score examples"): 600,
    ("s2l_tokens", "proxy"): 30 * 16 * 3,
    ("s2l_loss_nats_per_token", "proxy"): 1e-9,
    ("s2l_kmeans_inertia", "all"): 1e-9,
    ("s2l_stage_seconds", "train_proxy"): 1e-9,
}
"""A name and a label -> the least that is to be seen of it."""


@pytest.fixture
def port() -> Iterator[int]:
    """The port at which a local Ray is scraped."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield ray.nodes()[0]["MetricsExportPort"]
    ray.shutdown()


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def value(text: str, name: str, stage: str) -> float:
    return sum(
        float(v) for v in re.findall(rf'^ray_{name}(?:_total)?{{[^}}]*stage="{stage}"[^}}]*}} (\S+)$', text, re.M)
    )


class Scraper(threading.Thread):
    """Scrapes all the time, as Prometheus does: what a worker said is gone some time after the worker is."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.stopped = threading.Event()
        self.most: dict[tuple[str, str], float] = dict.fromkeys(EXPECTED, 0.0)

    def run(self) -> None:
        while not self.stopped.wait(1.0):
            try:
                text = scrape(self.port)
            except OSError:  # the port is not open yet, or too busy to answer
                continue
            for name, stage in EXPECTED:
                self.most[name, stage] = max(self.most[name, stage], value(text, name, stage))


def test_a_run_counts_rows_tokens_losses_inertia_and_seconds(port: int, tmp_path: Path) -> None:
    config = write_config(tmp_path, resources={"train_proxy": {"launcher": "task"}}, target={"engine": "torch"})
    experiment = load_experiment(config)
    pipeline = build_pipeline(experiment).until("select_subset")
    scraper = Scraper(port)
    scraper.start()
    try:
        Runner(pipeline, Storage.at(experiment.shared.storage), experiment.shared.resources).run()
        deadline = time.monotonic() + 60
        while not all(scraper.most[series] >= least for series, least in EXPECTED.items()):
            assert time.monotonic() < deadline, scraper.most
            time.sleep(1.0)
    finally:
        scraper.stopped.set()
        scraper.join()
    assert scraper.most["s2l_rows", "score examples"] == 600
    assert scraper.most["s2l_tokens", "proxy"] == 30 * 16 * 3
