"""Artifacts by where they lie, and what they were made from.

A manifest names its inputs by digest, so that what a subset came from can be told from the storage alone, long after
the config file is gone.
"""

from collections.abc import Mapping

from s2l_ray.artifacts import MANIFEST, Artifact, Manifest, find_artifact
from s2l_ray.errors import ArtifactError, ConfigError
from s2l_ray.storage import Storage

OF_A_MODEL = ("tokens", "tokenizer")
"""Artifacts that proxy and target each have their own of."""
SELECTIONS = ("subset", "extension")
"""Artifacts that hold chosen rows."""


def artifact_at(folder: str) -> Artifact | None:
    """Return the artifact whose folder this is, or None where it holds no manifest.

    Args:
        folder: `{storage}/{artifact}/{fingerprint}`, a path or a URI.

    Raises:
        ConfigError: the manifest is that of another address.
        ArtifactError: it is none.
    """
    storage = Storage.at(folder)
    data = storage.read_bytes(MANIFEST)
    if data is None:
        return None
    manifest = Manifest.from_json(data, storage.uri_of(MANIFEST))
    address = f"/{manifest.artifact}/{manifest.fingerprint}"
    root, mark, query = (storage.uri, "", "") if storage.is_local else storage.uri.partition("?")
    if not root.endswith(address):
        raise ConfigError(
            f"{folder} holds the {MANIFEST} of {address[1:]}, but lies elsewhere. Give the artifact's own folder, "
            "{storage}/{artifact}/{fingerprint}; a copy keeps these names."
        )
    return Artifact(Storage(root.removesuffix(address) + mark + query), manifest)


def selection_at(folder: str) -> Artifact:
    """Return the subset or extension whose folder this is; its `rows`, which a run's last lines name, do as well.

    Raises:
        ConfigError: it is not there, or is another kind of artifact.
    """
    path, mark, query = folder.partition("?")
    # {storage}/{artifact}/{fingerprint}/attempt-{id}/rows
    above, _, below = path.rstrip("/").rpartition("/attempt-")
    found = artifact_at((above if below.count("/") <= 1 and above else path) + mark + query)
    if found is None or found.manifest.artifact not in SELECTIONS:
        what = "no artifact" if found is None else f"the artifact {found.manifest.artifact}"
        raise ConfigError(
            f"{folder} holds {what}, expected the folder of a subset or of an extension: "
            "{storage}/subset/{fingerprint}. `s2l inspect STORAGE` lists what a storage holds."
        )
    return found


def is_extension_of(artifact: Artifact, subset: Artifact) -> bool:
    """Tell whether an artifact is an extension of this subset: its manifest names the subset's content."""
    is_extension, is_subset = artifact.manifest.artifact == "extension", subset.manifest.artifact == "subset"
    return is_extension and is_subset and artifact.manifest.inputs.get("subset") == subset.digest


def check_undamaged(*artifacts: Artifact) -> None:
    """Compare every file with its checksum.

    Raises:
        ArtifactError: one is missing or altered.
    """
    for artifact in artifacts:
        damaged = artifact.damaged_files()
        if damaged:
            raise ArtifactError(
                f"{artifact.uri_of(damaged[0])} is damaged: its checksum is not the manifest's. Run the experiment "
                "again, which makes the artifact anew, or bring the file back."
            )


def lineage(artifact: Artifact) -> Mapping[str, Artifact]:
    """Return what an artifact was made from, by role: `examples`, `clusters`, `proxy`, `target_tokenizer`, ...

    What its storage no longer holds is left out, with all that led to it alone. Of several artifacts of the same
    bytes the one of the lowest fingerprint is named: which of them was read cannot be told.
    """
    by_digest: dict[str, Mapping[str, Artifact]] = {}
    found: dict[str, Artifact] = {}
    waiting = [("", artifact)]
    while waiting:
        role, parent = waiting.pop(0)
        for name, digest in sorted(parent.manifest.inputs.items()):
            model = "target" if role.startswith("target") else "proxy"
            label = f"{model}_{name}" if name in OF_A_MODEL else name
            kind = next((kind for kind in OF_A_MODEL if label.endswith(f"_{kind}")), label)
            if kind not in by_digest:
                by_digest[kind] = _by_digest(artifact.storage, kind)
            known = by_digest[kind].get(digest)
            if known is not None and label not in found:
                found[label] = known
                waiting.append((label, known))
    return found


def required(found: Mapping[str, Artifact], role: str, of: Artifact) -> Artifact:
    """Return one of a lineage.

    Raises:
        ArtifactError: the storage does not hold it.
    """
    digest = of.manifest.inputs.get(role, "unknown")
    # That of another generation is none: an extension's subset has examples as well.
    if role not in found or (role in of.manifest.inputs and found[role].digest != digest):
        raise ArtifactError(
            f"{of.storage.uri_of(role)} does not hold the {role} that {of.manifest.artifact} "
            f"{of.manifest.fingerprint} was made from (digest {digest[:16]}). Expected both in one storage: run the "
            "experiment again there, or copy the whole storage and not the one folder."
        )
    return found[role]


def _by_digest(storage: Storage, kind: str) -> Mapping[str, Artifact]:
    found: dict[str, Artifact] = {}
    for fingerprint in storage.list_folders(kind):
        known = find_artifact(storage, kind, fingerprint)
        if known is not None:
            found.setdefault(known.digest, known)
    return found
