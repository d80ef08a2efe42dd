"""Packages that only some metrics need."""

import importlib.util

from s2l_ray.errors import ConfigError


def check_package(package: str, *, name: str, extra: str, asked: str) -> None:
    """Refuse to begin without a package.

    Args:
        package: as it is imported.
        name: as it is installed.
        extra: of this project, which brings it.
        asked: what needs it, for the message.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"evaluate.metrics: {asked} needs the package {name}, which is not installed. Install it with "
            f"`pip install 's2l-ray[{extra}]'`, also where Ray's workers run, or leave the metric out."
        )
