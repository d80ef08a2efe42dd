"""Packages that only some settings need: what is not installed is said before anything runs."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from s2l_ray.computation import FLASH
from s2l_ray.config import Config
from s2l_ray.errors import ConfigError
from s2l_ray.experiment import Experiment
from s2l_ray.log import display
from s2l_ray.tracking import PACKAGES


@dataclass(frozen=True)
class Missing:
    """A package that this machine lacks.

    Attributes:
        asked: what asks for it.
        advice: what to do.
        may_be_elsewhere: only workers with GPUs import it, and those of a cluster may have it where its head does not.
    """

    asked: str
    advice: str
    may_be_elsewhere: bool = False

    def __str__(self) -> str:
        return f"{self.asked}. {self.advice}"


def missing_packages(config: Config) -> Iterator[Missing]:
    """Yield every package that an arm asks for and this machine lacks."""
    for name in config.tracking.to:
        yield from _missing(PACKAGES[name], f"tracking.to: found {name}", f"pip install 's2l-ray[{name}]'")
    if config.target.lora is not None:
        yield from _missing("peft", "target.lora is set", "pip install 's2l-ray[lora]'")
    of_gpus = config.resources.cluster is not None
    if config.evaluate.engine == "vllm":
        yield from _missing("vllm", "evaluate.engine is vllm", "pip install 's2l-ray[vllm]'", of_gpus)
    for key, model in (("proxy", config.proxy), ("target", config.target)):
        if model.attention == FLASH:
            asked = f"{key}.attention is {FLASH}"
            yield from _missing("flash_attn", asked, "pip install flash-attn --no-build-isolation", of_gpus)


def _missing(package: str, asked: str, install: str, may_be_elsewhere: bool = False) -> Iterator[Missing]:
    if importlib.util.find_spec(package) is not None:
        return
    if may_be_elsewhere:
        found = f"{asked}, and the package {package} is not on this machine"
        yield Missing(found, f"The cluster's nodes with GPUs need it: `{install}`.", may_be_elsewhere)
    else:
        found = f"{asked}, but the package {package} is not installed"
        yield Missing(found, f"Install it with `{install}` (of a cluster, on every node), or leave it out.")


def check_packages(experiment: Experiment) -> None:
    """Refuse an experiment whose packages are not here; warn of those that may be where they are needed.

    Raises:
        ConfigError: one is missing.
    """
    missing = dict.fromkeys(found for config in experiment.arms.values() for found in missing_packages(config))
    for found in missing:
        if found.may_be_elsewhere:
            display.warn(str(found))
    if certain := [str(found) for found in missing if not found.may_be_elsewhere]:
        raise ConfigError("\n".join(certain))
