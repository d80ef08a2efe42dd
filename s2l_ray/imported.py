"""Trajectories that were computed elsewhere: what people bring in place of a proxy's run.

Two layouts are read. *Parquet*: a row per example, with its id and a list of its losses. *Official*: a folder of the
authors' code, with a `losses.pt` per checkpoint, a list or tensor of one loss per row of the training file, in order.
Shape suffixes: N rows, T checkpoints.

Source: the official layout is what github.com/BigML-CS-UCLA/S2L reads in `schedules/S2L.py`, which however takes the
checkpoints in the order of `glob`, skips unreadable ones and turns NaN into 0; here all three are errors.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from s2l_ray.digests import OutsideFile
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.input_files import is_remote, random_access, shown
from s2l_ray.inputs import find_inputs

KEY = "trajectories.path"
OFFICIAL = "losses.pt"
"""The file that the authors' code writes beside each checkpoint."""
STEPS = "checkpoint_steps"
"""Key of a Parquet file's metadata with the steps of the checkpoints, as our own files have it."""
Identity = Literal["example_id", "user_id", "row"]
"""What a loss is recognised by: our id, the data's own id, or the number of the row in the one input file."""


@dataclass(frozen=True)
class ImportedLosses:
    """Losses [nats/token] as they were found, in any order.

    Attributes:
        identity: what `keys` are.
        keys: int64 or string [N].
        loss_NT: float32 [N, T].
        loss_initial_N: float32 [N], before training; None where nobody recorded it.
        steps: of the checkpoints; their numbers from 1 where the files do not say.
    """

    identity: Identity
    keys: pa.Array
    loss_NT: NDArray[np.float32]
    loss_initial_N: NDArray[np.float32] | None
    steps: tuple[int, ...]


def find_losses(path: str) -> tuple[OutsideFile, ...]:
    """Find the files of `trajectories.path`.

    Args:
        path: Parquet file, folder, glob or URI; or a local folder whose subfolders hold a `losses.pt` each.

    Raises:
        ConfigError, DataError: there are none, or they are of another kind.
    """
    folder = Path(path).expanduser()
    if not is_remote(path) and (found := sorted(folder.glob(f"*/{OFFICIAL}"))):
        by_step = sorted(found, key=_step_of)
        status = [file.stat() for file in by_step]
        return tuple(
            OutsideFile(str(file.absolute()), file.relative_to(folder).as_posix(), each.st_size, each.st_mtime_ns)
            for file, each in zip(by_step, status, strict=True)
        )
    files = find_inputs(path, key=KEY)
    if files[0].file_format != "parquet":
        raise ConfigError(
            f"{KEY}: {shown(files[0].name)} is {files[0].file_format}. Expected Parquet with an id and a list of "
            f"losses per row, or a folder with a `{OFFICIAL}` per checkpoint as the authors' code writes them."
        )
    return tuple(OutsideFile(file.path, file.name, file.bytes, file.modified_ns) for file in files)


def read_losses(files: tuple[OutsideFile, ...], columns: Mapping[str, str]) -> ImportedLosses:
    """Read what `find_losses` found.

    Args:
        columns: our name (`example_id`, `user_id`, `loss`, `loss_initial`) -> the column of the Parquet files.

    Raises:
        DataError: a file cannot be read, a column is missing or of another type, trajectories differ in length, or a
            value is null.
    """
    if files[0].name.endswith(OFFICIAL):
        return _official(files)
    parts = [_parquet(file, columns) for file in files]
    first = parts[0]
    for file, part in zip(files, parts, strict=True):
        for what in ("identity", "steps"):
            if getattr(part, what) != getattr(first, what):
                raise DataError(
                    f"{KEY}: {shown(file.name)} has {what} {getattr(part, what)}, {shown(files[0].name)} has "
                    f"{getattr(first, what)}. Expected the same in all files."
                )
    with_initial = [part.loss_initial_N for part in parts if part.loss_initial_N is not None]
    if 0 < len(with_initial) < len(parts):
        raise DataError(f"{KEY}: only some files have a loss before training. Give it in all files, or in none.")
    return ImportedLosses(
        first.identity,
        pa.concat_arrays([part.keys for part in parts]),
        np.concatenate([part.loss_NT for part in parts]),
        np.concatenate(with_initial) if with_initial else None,
        first.steps,
    )


def place_of(wanted: pa.Array, found: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where in `found` each wanted key stands, int64 [N], and which are missing, bool [N].

    Raises:
        DataError: a key stands twice in `found`.
    """
    counts = pc.value_counts(found)
    if len(counts) < len(found):
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        raise DataError(
            f"{KEY}: {len(twice)} ids stand more than once, first {shown(str(twice[0].as_py()), 80)}. Expected a "
            "trajectory per example."
        )
    place = pc.index_in(wanted, value_set=found)
    missing_N = np.asarray(pc.is_null(place))
    return np.asarray(pc.fill_null(place, -1)).astype(np.int64), missing_N


def _parquet(file: OutsideFile, columns: Mapping[str, str]) -> ImportedLosses:
    where = f"{KEY}: {shown(file.name)}"
    with random_access(file.path) as source:
        try:
            table = pq.read_table(source, use_threads=not is_remote(file.path))
        except pa.ArrowException as error:
            raise DataError(f"{where} cannot be read: {shown(str(error), 200)}. Write the file again.") from error
    named = {ours: columns.get(ours, ours) for ours in ("example_id", "user_id", "loss", "loss_initial")}
    there = {ours: theirs for ours, theirs in named.items() if theirs in table.column_names}
    identity: Identity | None = next((name for name in ("example_id", "user_id") if name in there), None)
    if identity is None or "loss" not in there or set(columns) - set(there):
        raise DataError(
            f"{where} has the columns {', '.join(map(shown, table.column_names))}. Expected `example_id` (ours) or "
            "`user_id` (that of `examples.columns: {id: ...}`), and `loss`, a list of numbers; name others with "
            "`trajectories.columns`, e.g. `{user_id: uid, loss: losses}`."
        )
    loss_NT = _matrix(table.column(there["loss"]), where)
    initial = table.column(there["loss_initial"]) if "loss_initial" in there else None
    said = (table.schema.metadata or {}).get(STEPS.encode(), b"").decode()
    steps = tuple(int(step) for step in said.split(",")) if re.fullmatch(r"\d+(,\d+)*", said) else ()
    n_checkpoints = loss_NT.shape[1]
    keys = table.column(there[identity]).combine_chunks()
    if keys.null_count:
        raise DataError(f"{where}: {keys.null_count} rows have no `{shown(there[identity])}`. Give every row its id.")
    return ImportedLosses(
        identity,
        _cast(keys, pa.int64() if identity == "example_id" else pa.string(), f"{where}: `{shown(there[identity])}`"),
        loss_NT,
        None if initial is None else np.asarray(_cast(initial, pa.float32(), f"{where}: the loss before training")),
        steps if len(steps) == n_checkpoints else tuple(range(1, n_checkpoints + 1)),
    )


def _matrix(column: pa.ChunkedArray, where: str) -> NDArray[np.float32]:
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise DataError(f"{where}: the losses are {kind}. Expected a list of numbers per row, one per checkpoint.")
    lengths = pc.value_counts(pc.list_value_length(column))
    if column.null_count or len(lengths) != 1 or not lengths[0]["values"].as_py():
        found = ", ".join(f"{each['counts']} rows of {each['values']}" for each in lengths.to_pylist()[:4])
        raise DataError(f"{where}: trajectories of different lengths: {found}. Expected T losses in every row.")
    values = pc.list_flatten(column)
    if values.null_count:
        raise DataError(f"{where}: {values.null_count} losses are null. A loss that is not known is never made up.")
    return np.asarray(_cast(values, pa.float32(), where)).reshape(len(column), -1)


def _cast(values: Any, kind: pa.DataType, where: str) -> Any:
    try:
        return pc.cast(values, kind, safe=pa.types.is_integer(kind))
    except pa.ArrowException as error:
        raise DataError(f"{where}: {shown(str(error), 200)}. Expected {kind}.") from error


def _official(files: tuple[OutsideFile, ...]) -> ImportedLosses:
    loss_TN = [_losses_of(file) for file in files]
    sizes = {len(loss_N) for loss_N in loss_TN}
    if len(sizes) > 1:
        raise DataError(
            f"{KEY}: the checkpoints have {', '.join(map(str, sorted(sizes)))} losses. Expected one per row of the "
            "training file in each; one of them was cut short."
        )
    steps = tuple(_step_of(Path(file.path)) for file in files)
    return ImportedLosses("row", pa.array(np.arange(*sizes)), np.stack(loss_TN, axis=1), None, steps)


def _losses_of(file: OutsideFile) -> NDArray[np.float32]:
    import torch

    try:
        # `weights_only` reads tensors, numbers and lists, and runs nothing of what the file says.
        loaded = torch.load(file.path, map_location="cpu", weights_only=True)
        loss_N: NDArray[np.float32] = torch.as_tensor(loaded, dtype=torch.float32).numpy()
    except Exception as error:  # of torch's, whatever is wrong with a file
        raise DataError(
            f"{KEY}: {shown(file.name)} is no list of losses: {shown(str(error), 200)}. Expected what "
            "`torch.save(losses)` writes for a list or a tensor with a loss per row; save it so again."
        ) from error
    if loss_N.ndim != 1 or not len(loss_N):
        raise DataError(f"{KEY}: {shown(file.name)} has the shape {list(loss_N.shape)}. Expected a loss per row.")
    return loss_N


def _step_of(file: Path) -> int:
    numbers = re.findall(r"\d+", file.parent.name)
    if not numbers:
        raise ConfigError(
            f"{KEY}: the name of {shown(file.parent.name)!r} holds no step. Expected such as `checkpoint-500`; "
            "checkpoints are taken in the order of their steps."
        )
    return int(numbers[-1])
