"""What `explain` found, as lines for a person: losses as small bars, texts of the data short and escaped."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s2l_ray.input_files import shown

_BARS = "▁▂▃▄▅▆▇█"
_TEXT_LIMIT, _SHORT_LIMIT = 300, 60
"""Characters of a text of the data that are shown."""
_UNITS = {"loss": " [nats^2]", "hidden_state": " of hidden states"}
"""Of squared distances, by what is clustered."""


def sparkline(values: Sequence[float]) -> str:
    """Return numbers as bars of text: the highest bar is the largest of them, the lowest is 0 or less."""
    top = max(*values, 0.0) or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int(max(value, 0.0) / top * len(_BARS)))] for value in values)


def example_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is known of a row; see `explain.explain_example`."""
    yield f"example {told['example_id']}, {shown(told['place'])}"
    for name in ("user_id", "source", "skill"):
        if told[name] is not None:
            yield f"{name}: {shown(told[name])}"
    yield f"prompt: {shown(told['prompt'], _TEXT_LIMIT)}"
    yield f"response: {shown(told['response'], _TEXT_LIMIT)}"
    for clustering in told["clusterings"]:
        yield f"clusters of {', '.join(clustering['arms'])}:"
        if "loss" in clustering:
            yield f"  {_losses([clustering['loss_initial'], *clustering['loss']])}, from before training on"
        if "guard" in clustering:
            yield f"  guard: {clustering['guard']}"
        if "cluster_id" in clustering:
            unit = _UNITS[clustering["features"]]
            yield f"  {_cluster(clustering)}, at a squared distance of {clustering['distance']:.4g}{unit}"
    for name, fate in told["arms"].items():
        yield f"{name} ({fate['method']}): {_fate(fate)}"


def cluster_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is known of a cluster; see `explain.explain_cluster`."""
    for clustering in told["clusterings"]:
        yield f"clusters of {', '.join(clustering['arms'])}: {_cluster(clustering)}"
        if clustering["features"] == "loss":
            yield f"  centroid {_losses(clustering['centroid'])}"
        yield "  taken: " + ", ".join(f"{count} by {arm}" for arm, count in clustering["taken"].items())
        for title, rows in (("nearest", "nearest"), (f"first taken by {clustering['arms'][0]}", "first_taken")):
            yield f"  {title}:"
            for row in clustering[rows]:
                rank = "not taken" if row["rank"] is None else f"rank {row['rank']}"
                texts = f"{shown(row['prompt'], _SHORT_LIMIT)} -> {shown(row['response'], _SHORT_LIMIT)}"
                yield f"    {row['example_id']} {shown(row['place'])} ({row['distance']:.4g}, {rank}): {texts}"


def _losses(values: Sequence[float]) -> str:
    return f"loss {sparkline(values)} {values[0]:.3f} to {values[-1]:.3f} [nats/token]"


def _cluster(clustering: Mapping[str, Any]) -> str:
    stratum = f" of {shown(clustering['stratum'])}" if clustering["stratum"] else ""
    return f"cluster {clustering['cluster_id']}{stratum}, {clustering['size']} rows"


def _fate(fate: Mapping[str, Any]) -> str:
    if not fate["taken"]:
        return f"not taken; {fate['why']}"
    of_cluster = f", one of {fate['quota']} of its cluster" if fate["quota"] is not None else ""
    return f"taken, rank {fate['rank']} of {fate['rows_taken']}{of_cluster}: {fate['why']}"
