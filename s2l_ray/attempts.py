"""Attempts: how an artifact comes to exist, whatever is killed meanwhile.

A stage writes into an attempt folder of its own (`StagedOutput`); the commit writes the manifest, which makes the
artifact exist. An attempt that was cut short is adopted by the next run of the same thing, which finds the pieces that
it already finished (`StagedOutput.finished`).
"""

import json
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from s2l_ray.artifacts import DISCARDED, Artifact, find_artifact
from s2l_ray.heartbeats import STALE_SECONDS, Heartbeat
from s2l_ray.log import display
from s2l_ray.staged_output import SCRATCH, StagedOutput
from s2l_ray.storage import Storage

BUSY_SECONDS = 2.0
"""How often an artifact is looked for that another run is making."""
_ATTEMPT = re.compile(r"attempt-[0-9a-f]{12}")


def begin(storage: Storage, artifact: str, fingerprint: str) -> StagedOutput | None:
    """Return an attempt to write an artifact: an abandoned one, else a new one, None while another run is at it."""
    open_ones = [one for one in _attempts(storage, artifact, fingerprint) if one.read_bytes(DISCARDED) is None]
    beats = [(staged, staged.heartbeat()) for staged in open_ones]
    # None is watched for long, and none taken, while another one tells at once.
    if any(beat is not None and beat.is_alive for _, beat in beats):
        return None
    for staged, beat in beats:
        match _take(staged, beat):
            case "ours":
                return staged
            case "theirs":
                return None
    return StagedOutput(storage, artifact, fingerprint, f"attempt-{uuid.uuid4().hex[:12]}")


def find_or_make(
    storage: Storage,
    artifact: str,
    fingerprint: str,
    make: Callable[[StagedOutput], Artifact],
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> Artifact:
    """Return an artifact; make it if it is not there.

    Args:
        make: fills the attempt and commits it.
        on_wait: called once when another run is at it and has to be waited for.
    """
    waited = False
    while True:
        known = find_artifact(storage, artifact, fingerprint)
        if known is not None:
            return known
        output = begin(storage, artifact, fingerprint)
        if output is not None:
            # A run that has committed since we looked has signed off, and its attempt looks abandoned.
            known = find_artifact(storage, artifact, fingerprint)
            if known is not None:
                return known
            with output.alive(display.doing()):
                return make(output)
        if not waited:
            on_wait()
            waited = True
        time.sleep(BUSY_SECONDS)


@dataclass(frozen=True)
class AtWork:
    """What a run says of the artifact that it is making.

    Attributes:
        host: where it runs.
        seconds: since it began.
        doing: how far it is; empty where it has not said so yet.
    """

    host: str
    seconds: float
    doing: str


def at_work(storage: Storage, artifact: str, fingerprint: str) -> AtWork | None:
    """Return what the run says that is making an artifact now; None where none is."""
    for staged in _attempts(storage, artifact, fingerprint):
        beat = staged.heartbeat()
        if beat is not None and beat.is_alive:
            since = beat.time if beat.since is None else beat.since
            return AtWork(beat.host.partition("/")[0], max(0.0, time.time() - since), beat.doing)
    return None


def orphans(storage: Storage) -> list[tuple[str, ...]]:
    """Return what nobody works on and no manifest names, as parts of a path below the root.

    That is (artifact, fingerprint, attempt), or with `scratch` at the end what a committed attempt left over.
    Folders that are no attempts of ours are none of our business, wherever this storage may point.
    """
    found: list[tuple[str, ...]] = []
    for artifact in storage.list_folders():
        for fingerprint in storage.list_folders(artifact):
            for staged in _attempts(storage, artifact, fingerprint):
                beat = staged.heartbeat()
                if (beat and beat.is_alive) or _is_claimed(staged, beat):
                    continue
                # Only now the manifest: an attempt is alive until it is committed.
                committed = find_artifact(storage, artifact, fingerprint)
                if committed is None or committed.manifest.run["attempt"] != staged.attempt:
                    found.append((artifact, fingerprint, staged.attempt))
                elif SCRATCH in storage.list_folders(artifact, fingerprint, staged.attempt):
                    found.append((artifact, fingerprint, staged.attempt, SCRATCH))
    return found


def remove_orphan(storage: Storage, orphan: tuple[str, ...]) -> bool:
    """Remove what `orphans` has found; return False where it is left, since a run has taken it up meanwhile."""
    artifact, fingerprint, attempt, *scratch = orphan
    if not scratch:
        staged = StagedOutput(storage, artifact, fingerprint, attempt)
        # Our claim holds back whoever would adopt it while it goes.
        if _take(staged, staged.heartbeat()) == "theirs":
            return False
        committed = find_artifact(storage, artifact, fingerprint)
        if committed is not None and committed.manifest.run["attempt"] == attempt:
            return False
    storage.delete_folder(*orphan)
    return True


def _attempts(storage: Storage, artifact: str, fingerprint: str) -> list[StagedOutput]:
    names = storage.list_folders(artifact, fingerprint)
    return [StagedOutput(storage, artifact, fingerprint, name) for name in names if _ATTEMPT.fullmatch(name)]


def _take(staged: StagedOutput, beat: Heartbeat | None) -> Literal["ours", "theirs", "nobody's"]:
    """Claim an attempt that was left with a heartbeat; return whose it is now.

    Of several that would have it the first to write the claim has it, and it is `theirs` to the others until it has had
    the time for a heartbeat of its own. After that a claim that no heartbeat followed came to nothing.
    """
    if beat is not None and (beat.is_alive or beat.is_followed(staged.heartbeat)):
        return "theirs"
    word = {"time": time.time(), "by": uuid.uuid4().hex}
    if staged.storage.create_exclusively(json.dumps(word).encode(), *_claim_of(staged, beat)):
        return "ours"
    return "theirs" if _is_claimed(staged, beat) else "nobody's"


def _claim_of(staged: StagedOutput, beat: Heartbeat | None) -> tuple[str, ...]:
    """Return the place of the claim on an attempt that was left with this heartbeat."""
    return staged.artifact, staged.fingerprint, staged.attempt, f"claim-{beat.nonce if beat else 'first'}"


def _is_claimed(staged: StagedOutput, beat: Heartbeat | None) -> bool:
    data = staged.storage.read_bytes(*_claim_of(staged, beat))
    return data is not None and time.time() - float(json.loads(data)["time"]) < STALE_SECONDS
