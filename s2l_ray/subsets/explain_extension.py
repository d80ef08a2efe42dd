"""Why a row that came later was taken or not: what an extension, and what it was made from, say about it."""

from typing import Any

from s2l_ray.artifacts import Artifact
from s2l_ray.subsets.lineage import lineage, required
from s2l_ray.subsets.one_row import clustered, described, fate_of, find_row, place_in_draw, without_tokens


def explain_added(extension: Artifact, asked: str) -> dict[str, Any]:
    """Say of a new row what it is, how it was learned and clustered, and what the extension made of it.

    Args:
        extension: that the row may be in.
        asked: its `example_id` among the new rows, or `file:line` with lines counted from 1.

    Returns:
        As `explain.explain_example`, with the extension as the only arm.

    Raises:
        ArtifactError: the storage does not hold what the extension was made from.
        ConfigError, DataError: there is no such row.
    """
    found = lineage(extension)
    examples, assigned, clusters = (
        required(found, role, extension) for role in ("examples", "assignments", "clusters")
    )
    example_id = find_row(examples, asked)
    fate = fate_of(example_id, extension, assigned)
    if not fate["taken"]:
        tokens = {model: required(found, f"{model}_tokens", extension) for model in ("target", "proxy")}
        aside = assigned.read_examples("set_aside-", [example_id]).to_pylist()
        fate["why"] = without_tokens(example_id, tokens) or (
            f"set aside: {aside[0]['reason']}"
            if aside
            else place_in_draw(example_id, examples, assigned, tokens["target"], extension.manifest.config["seed"])
            + f" among the new rows, of which it gave {fate['quota']}"
        )
    trajectories = required(found, "trajectories", assigned)
    return {
        **described(examples, example_id),
        "clusterings": [{"arms": ["extension"], **clustered(example_id, trajectories, assigned, clusters)}],
        "arms": {"extension": {"method": extension.manifest.config["settings"]["method"], **fate}},
    }
