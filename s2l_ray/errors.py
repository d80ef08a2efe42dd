"""The errors a user can meet.

Every message says what was found, what was expected and what to do. `exit_code` is what the command returns:
2 when the config or the data must change, 1 when the run itself failed.
"""

from collections.abc import Mapping, Sequence
from typing import Any


class S2LError(Exception):
    """Base of every error raised on purpose. Never retried: the same input fails the same way."""

    exit_code = 1


class ConfigError(S2LError):
    """The config asks for something that cannot be."""

    exit_code = 2


class DataError(S2LError):
    """The input rows cannot be used as they are.

    Attributes:
        example_ids: the rows concerned, where they already have an id.
    """

    exit_code = 2

    def __init__(self, message: str, example_ids: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.example_ids = tuple(example_ids)

    def __reduce__(self) -> tuple[type["DataError"], tuple[str, tuple[int, ...]]]:
        """Keep `example_ids` when the error crosses a process border."""
        return type(self), (str(self), self.example_ids)


class ArtifactError(S2LError):
    """An artifact is missing, incomplete, altered, or of another schema."""


class StorageError(S2LError, OSError):
    """The storage does not do what it is asked: out of reach, full, not permitted. An `OSError` as well."""


class StageFailed(S2LError):
    """A stage ended without its artifact for a reason outside config and data."""


class JobFailed(S2LError):
    """A submitted job failed; the exit code is its own."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def encode_error(error: S2LError) -> dict[str, Any]:
    """Return an error as plain data, to leave a worker as what it is and not wrapped in other people's tracebacks."""
    return {"type": type(error).__name__, "message": str(error), "ids": list(getattr(error, "example_ids", ()))}


def decode_error(data: Mapping[str, Any]) -> S2LError:
    """Return the error that `encode_error` took."""
    kinds: list[type[S2LError]] = [S2LError, *S2LError.__subclasses__()]
    kind = next(found for found in kinds if found.__name__ == data["type"])
    return DataError(data["message"], data["ids"]) if kind is DataError else kind(data["message"])
