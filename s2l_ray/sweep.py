"""A sweep: the settings that an experiment is tried with, and the trials that follow from them.

    sweep:
      parameters:
        cluster.n_clusters: [50, 100]                   # values of a config path
        select.seed + target.seed: [0, 1, 2]            # two paths that move together
        proxy.learning_rate: {low: 1.0e-4, high: 1.0e-2, scale: log}   # a range; `search: random` or `asha`
        corpus:                                         # names for sets of overrides, as `arms` are
          clean: {examples.synthetic.wrong: 0.0}
          noisy: {examples.synthetic.wrong: 0.05}
      metric: macro_exact_match

The file's `arms` are one more parameter, `arm`, which may also name the ones to try. A parameter whose paths all end
in `seed` holds seeds: trials that differ in nothing else are repetitions of one *setting*, and settings are compared
over equal seeds, in pairs.

`grid` tries every setting, `random` draws `samples` of them, `asha` draws as well and gives a setting its next seed
only while it is among the better ones (asynchronous successive halving, Li et al. 2020, arXiv 1810.05934).
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import Field, field_validator, model_validator

from s2l_ray.config import Config, MetricName, Section
from s2l_ray.errors import ConfigError
from s2l_ray.experiment import (
    MAIN_ARM,
    Experiment,
    Sparse,
    load_sparse,
    paths_overlap,
    text_of,
    validated,
    with_overrides,
)

ARM = "arm"
"""The parameter that a file's `arms` are."""
METRICS = tuple(f"{mean}_{name}" for name in get_args(MetricName) for mean in ("macro", "micro"))
"""What a sweep may look for."""
MAX_TRIALS = 10_000


class ValueRange(Section):
    """Numbers to draw from."""

    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    integer: bool = False
    """Whole numbers only, both ends included."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "ValueRange":
        if not self.low < self.high:
            raise ValueError(f"found low {self.low:g} and high {self.high:g}, expected low below high")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"found low {self.low:g} on a log scale, expected a number above 0")
        return self

    def draw(self, generator: np.random.Generator) -> float | int:
        """Draw one number."""
        low, high = (math.log(self.low), math.log(self.high)) if self.scale == "log" else (self.low, self.high)
        value = float(generator.uniform(low, high))
        value = math.exp(value) if self.scale == "log" else value
        return min(max(round(value), math.ceil(self.low)), math.floor(self.high)) if self.integer else value


class SweepConfig(Section):
    """What a sweep tries, and what it looks for."""

    parameters: dict[str, Any] = Field(default_factory=dict)
    """Config path -> its values: `select.budget: [0.1, 0.2]`; `a.seed + b.seed: [0, 1]` moves two together,
    `{low: 1.0e-4, high: 1.0e-2, scale: log}` is a range to draw from, `arm: [random, s2l]` names arms of the file, and
    any other name stands for sets of overrides: `corpus: {clean: {examples.path: a.jsonl}, noisy: {...}}`."""
    search: Literal["grid", "random", "asha"] = "grid"
    """`grid` tries every setting, `random` draws `samples` of them, `asha` gives a drawn one its next seed only while
    it is among the better ones."""
    samples: int = Field(16, ge=1)
    """Settings drawn by `random` and `asha`."""
    metric: str = "macro_loss"
    """What is best, higher or lower as the metric wants it: `macro_` or `micro_` and one of `evaluate.metrics`."""
    baseline: dict[str, Any] = Field(default_factory=dict)
    """The settings that others are compared with, e.g. `{arm: random}`: equal in all other parameters."""
    max_concurrent: int | None = Field(None, ge=1)
    """Trials at once at most; as many as the cluster's CPUs and GPUs hold unless set."""
    retries: int = Field(2, ge=0)
    """Times that a trial is started again after its process died."""
    seed: int = Field(0, ge=0)
    """Seed of the draws of `random` and `asha`."""

    @field_validator("metric")
    @classmethod
    def _is_a_metric(cls, value: str) -> str:
        if value not in METRICS:
            raise ValueError(f"found {value}, expected one of {', '.join(METRICS)}")
        return value

    @field_validator("parameters")
    @classmethod
    def _has_values(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, values in value.items():
            if not isinstance(values, list | dict) or not values:
                raise ValueError(f"`{name}`: expected a list of values, a range, or names with overrides")
        return value


@dataclass(frozen=True)
class Parameter:
    """One axis of a sweep.

    Attributes:
        name: as the file writes it.
        choices: label -> the overrides it stands for; empty for a range.
        range: numbers to draw from, for the paths in `paths`.
    """

    name: str
    paths: tuple[str, ...]
    choices: Mapping[Any, Mapping[str, Any]]
    range: ValueRange | None = None

    @property
    def is_seed(self) -> bool:
        """Whether its values repeat a setting and make no other one."""
        return bool(self.paths) and all(path.rpartition(".")[2] == "seed" for path in self.paths)

    def overrides(self, value: Any) -> Mapping[str, Any]:
        """Return what a value changes in the config."""
        return self.choices[value] if self.range is None else dict.fromkeys(self.paths, value)


@dataclass(frozen=True)
class Trial:
    """One run of the pipeline.

    Attributes:
        name: unique in the sweep.
        setting: parameter -> value, seeds left out; equal for repetitions.
        seeds: parameter -> value.
        config: all of it, complete.
    """

    name: str
    setting: Mapping[str, Any]
    seeds: Mapping[str, Any]
    config: Config

    @property
    def values(self) -> dict[str, Any]:
        """Every parameter's value."""
        return {**self.setting, **self.seeds}

    @property
    def experiment(self) -> Experiment:
        """The trial as an experiment of one arm, which shares its artifacts with any other run of the same."""
        return Experiment(name=self.name, arms={MAIN_ARM: self.config}, sparse={})


@dataclass(frozen=True)
class Sweep:
    """A config file with a `sweep:` section, laid out."""

    name: str
    config: SweepConfig
    parameters: tuple[Parameter, ...]
    trials: tuple[Trial, ...]
    text: str = ""
    """The sweep as a file; see `experiment.text_of`."""

    @property
    def shared(self) -> Config:
        """What all trials have in common for storage and resources."""
        return self.trials[0].config

    @property
    def experiment(self) -> Experiment:
        """All trials as the arms of one experiment."""
        return Experiment(name=self.name, arms={trial.name: trial.config for trial in self.trials}, sparse={})

    def settings(self) -> dict[str, list[Trial]]:
        """Return the repetitions of every setting, by a label, in order."""
        found: dict[str, list[Trial]] = {}
        for trial in self.trials:
            found.setdefault(setting_label(trial.setting), []).append(trial)
        return found


def load_sweep(path: str | Path, overrides: list[str] | None = None) -> Sweep:
    """Read a YAML file with a `sweep:` section, apply `--set` lines, and lay out its trials.

    Raises:
        ConfigError: the file, a key or a value is not what it must be.
    """
    return lay_out(load_sparse(path, overrides))


def setting_label(setting: Mapping[str, Any]) -> str:
    """Return how a setting is called in tables."""
    return ", ".join(f"{name}={value}" for name, value in setting.items()) or MAIN_ARM


def lay_out(sparse: Sparse) -> Sweep:
    """Turn a file with a `sweep:` section into trials.

    A parameter that `--set` gave a value has that value and is swept no more.

    Raises:
        ConfigError: the section, a path or a value is not what it must be.
    """
    origin = f"{sparse.origin} (sweep)"
    if not sparse.sweep:
        raise ConfigError(f"{sparse.origin} has no `sweep:` section. Run it with `s2l run {sparse.origin}`.")
    config = validated(SweepConfig, sparse.sweep, origin)
    parameters = tuple(_parameters(config, sparse, origin))
    if any(parameter.range for parameter in parameters) and config.search == "grid":
        raise ConfigError(f"{origin}: a range has no grid. Write `search: random`, or list the values.")
    config = config.model_copy(update={"baseline": dict(_baseline(config, parameters, origin))})
    varied = [p for p in parameters if not p.is_seed]
    repeats = list(_grid([p for p in parameters if p.is_seed]))
    settings = ((setting, seeds) for setting in _settings(config, varied) for seeds in repeats)
    wanted = list(itertools.islice(settings, MAX_TRIALS + 1))
    if len(wanted) > MAX_TRIALS:
        raise ConfigError(f"{origin}: found more than {MAX_TRIALS} trials. Sweep fewer values.")
    trials = tuple(_trial(f"t{number:04d}", *both, parameters, sparse) for number, both in enumerate(wanted))
    _check_measured(config.metric, trials, origin)
    text = text_of({**sparse.data, "arms": dict(sparse.arms), "sweep": dict(sparse.sweep)})
    return Sweep(sparse.name, config, parameters, trials, text)


def _check_measured(metric: str, trials: Sequence[Trial], origin: str) -> None:
    wanted = metric.removeprefix("macro_").removeprefix("micro_")
    for trial in trials:
        measured = trial.config.evaluate.metrics
        if wanted not in measured:
            label = setting_label(trial.values)
            raise ConfigError(
                f"{origin}: `metric`: {metric} is not measured: evaluate.metrics of trial {label} is "
                f"[{', '.join(measured)}]. Add {wanted} to evaluate.metrics, or choose another metric."
            )


def _trial(
    name: str, setting: Mapping[str, Any], seeds: Mapping[str, Any], parameters: Sequence[Parameter], sparse: Sparse
) -> Trial:
    values = {**setting, **seeds}
    data = sparse.data
    for parameter in parameters:
        data = with_overrides(data, parameter.overrides(values[parameter.name]))
    return Trial(name, setting, seeds, validated(Config, data, f"{sparse.origin} (trial {setting_label(values)})"))


def _parameters(config: SweepConfig, sparse: Sparse, origin: str) -> Iterator[Parameter]:
    if tuple(sparse.arms) != (MAIN_ARM,) or ARM in config.parameters:
        yield Parameter(ARM, (), _chosen_arms(sparse.arms, config.parameters.get(ARM), origin))
    for name, values in config.parameters.items():
        paths = tuple(path.strip() for path in name.split("+"))
        if name == ARM:
            continue
        if isinstance(values, list):
            found = Parameter(name, paths, {_hashable(v): dict.fromkeys(paths, v) for v in values})
            if len(found.choices) < len(values):
                raise ConfigError(
                    f"{origin}: `{name}`: found {values}, expected values that differ: 1 and 1.0 are one number. A "
                    "budget of all rows is written 100%."
                )
        elif set(values) <= set(ValueRange.model_fields):
            found = Parameter(name, paths, {}, validated(ValueRange, values, f"{origin}, {name}"))
        elif all(isinstance(changes, Mapping) for changes in values.values()):
            found = Parameter(name, (), values)
        else:
            raise ConfigError(
                f"{origin}: `{name}`: expected a list of values, {{low, high}}, or names with overrides such as "
                "`noisy: {examples.synthetic.wrong: 0.05}`."
            )
        touched = {*found.paths, *(path for changes in found.choices.values() for path in changes)}
        if not any(paths_overlap(path, fixed) for path in touched for fixed in sparse.set_paths):
            yield found


def _chosen_arms(arms: Mapping[str, Mapping[str, Any]], chosen: Any, origin: str) -> Mapping[str, Mapping[str, Any]]:
    if chosen is None:
        return arms
    if not isinstance(chosen, list) or not set(map(str, chosen)) <= set(arms) or MAIN_ARM in arms:
        among = "the file has none" if MAIN_ARM in arms else ", ".join(arms)
        raise ConfigError(f"{origin}: `{ARM}`: found {chosen}, expected a list of the file's arms ({among}).")
    return {str(name): arms[str(name)] for name in chosen}


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _baseline(config: SweepConfig, parameters: Sequence[Parameter], origin: str) -> Iterator[tuple[str, Any]]:
    """Yield the baseline's values as the parameters write them: 50.0 is the 50 that is tried."""
    known = {parameter.name: parameter for parameter in parameters if not parameter.is_seed}
    for name, value in config.baseline.items():
        parameter = known.get(name)
        if parameter is not None and parameter.range is not None:
            yield name, value
            continue
        choices = list(parameter.choices if parameter is not None else known)
        if parameter is None or _hashable(value) not in choices:
            among = ", ".join(map(str, choices))
            raise ConfigError(f"{origin}: `baseline`: found {name}: {value}, expected one of {among}.")
        yield name, choices[choices.index(_hashable(value))]


def _grid(parameters: Sequence[Parameter]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*(parameter.choices for parameter in parameters)):
        yield dict(zip((parameter.name for parameter in parameters), values, strict=True))


def _settings(config: SweepConfig, varied: Sequence[Parameter]) -> Iterator[dict[str, Any]]:
    if config.search == "grid":
        yield from _grid(varied)
        return
    generator = np.random.default_rng(config.seed)
    seen = set()
    for _ in range(config.samples):
        drawn = {}
        for parameter in varied:
            if parameter.range is not None:
                drawn[parameter.name] = parameter.range.draw(generator)
            else:
                choices = list(parameter.choices)
                drawn[parameter.name] = choices[int(generator.integers(len(choices)))]
        # Equal draws are one setting; trying it twice would say nothing new.
        if (label := setting_label(drawn)) not in seen:
            seen.add(label)
            yield drawn
