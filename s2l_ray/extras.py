"""Packages that only some settings need: what is not installed is said before anything runs."""

import importlib.util
from collections.abc import Iterator

from s2l_ray.computation import FLASH
from s2l_ray.config import Config
from s2l_ray.errors import ConfigError
from s2l_ray.experiment import Experiment
from s2l_ray.tracking import PACKAGES


def missing_packages(config: Config) -> Iterator[str]:
    """Yield a message for every package that an arm asks for and this machine lacks."""
    for name in config.tracking.to:
        yield from _missing(PACKAGES[name], f"tracking.to: found {name}", f"pip install 's2l-ray[{name}]'")
    if config.target.lora is not None:
        yield from _missing("peft", "target.lora is set", "pip install 's2l-ray[lora]'")
    if config.evaluate.engine == "vllm":
        yield from _missing("vllm", "evaluate.engine is vllm", "pip install 's2l-ray[vllm]'")
    for key, model in (("proxy", config.proxy), ("target", config.target)):
        if model.attention == FLASH:
            asked = f"{key}.attention is {FLASH}"
            yield from _missing("flash_attn", asked, "pip install flash-attn --no-build-isolation")


def _missing(package: str, asked: str, install: str) -> Iterator[str]:
    if importlib.util.find_spec(package) is None:
        yield (
            f"{asked}, but the package {package} is not installed. Install it with `{install}` (of a cluster, "
            "on every node), or leave it out."
        )


def check_packages(experiment: Experiment) -> None:
    """Refuse an experiment whose packages are not here.

    Raises:
        ConfigError: one is missing.
    """
    missing = dict.fromkeys(line for config in experiment.arms.values() for line in missing_packages(config))
    if missing:
        raise ConfigError("\n".join(missing))
