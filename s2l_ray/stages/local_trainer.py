"""Ray Train on a Ray that ends with this process: two of its helpers stay away, each of which is a process."""

from typing import Any

from ray.train.torch import TorchTrainer

NOT_NEEDED = ("PlacementGroupCleanerCallback", "DatasetsCallback")
"""The first starts an actor that frees the gang's resources should its controller die: here they die with it. The
second starts one that deals out `datasets`: there are none, since workers read their own rows."""


class LocalTrainer(TorchTrainer):  # type: ignore[misc]  # Ray has no types
    """A trainer whose gang is up sooner: on two cores these actors take as long as the worker's own imports."""

    def _create_default_callbacks(self) -> list[Any]:
        # Ray Train's own hook, not a public one. Where it or the names are gone, a run has all of its helpers again.
        return [each for each in super()._create_default_callbacks() if type(each).__name__ not in NOT_NEEDED]
