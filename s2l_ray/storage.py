"""The storage: a root folder on any file system, where artifacts live."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from s2l_ray.errors import ConfigError, StorageError
from s2l_ray.filesystems import is_missing, open_filesystem, opened, waiting_told
from s2l_ray.log import without_user_info


def check_outlives_job(uri: str) -> None:
    """Refuse what would be a storage within the working directory of a submitted job.

    Raises:
        ConfigError: a relative path.
    """
    if "://" not in uri and not uri.startswith("~") and not Path(uri).is_absolute():
        raise ConfigError(
            f"storage {uri!r} is relative, and the working directory of a submitted job vanishes with the job. "
            "Set `storage` (or --storage) to an absolute path or a URI that every node can reach."
        )


@dataclass(frozen=True)
class Storage:
    """A root folder on any `pyarrow.fs` file system. Cheap to pickle."""

    uri: str

    @classmethod
    def at(cls, uri: str) -> "Storage":
        """Return the storage at a path or URI; a local path becomes absolute.

        Raises:
            ConfigError: a relative path in a submitted job, a URI that pyarrow cannot open, a store that does not
                answer, or no path at all.
        """
        if "://" in uri:
            try:
                filesystem, inner = open_filesystem(uri)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise ConfigError(
                    f"storage {uri!r}: {error}. Expected a local path or a URI such as s3://bucket/dir."
                ) from error
            if not inner:
                raise ConfigError(f"storage {uri!r}: found no bucket or path. Expected a URI such as s3://bucket/dir.")
            if not isinstance(filesystem, pafs.LocalFileSystem):
                storage = cls(uri.rstrip("/"))
                storage.check_reachable()
                return storage
            uri = inner
        try:
            return cls._at_path(uri)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"storage {uri!r}: {error}. Expected the path of a folder.") from error

    @classmethod
    def _at_path(cls, uri: str) -> "Storage":
        path = Path(uri).expanduser()
        if not uri.strip():
            raise ConfigError(f"storage {uri!r}: found an empty path. Expected a folder, e.g. ./.s2l.")
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
            check_outlives_job(uri)
        path = path.absolute()
        for ancestor in (path, *path.parents):
            if ancestor.exists() and not ancestor.is_dir():
                raise ConfigError(
                    f"storage {path}: {ancestor} is a file. Expected a folder, or a path that can become one."
                )
        return cls(str(path))

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine."""
        return "://" not in self.uri

    @cached_property
    def _resolved(self) -> tuple[pafs.FileSystem, str]:
        if self.is_local:
            return pafs.LocalFileSystem(), self.uri
        filesystem, root = open_filesystem(self.uri)
        return filesystem, root.rstrip("/")

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        """Pickle the URI alone: the file system handle belongs to its process."""
        return type(self), (self.uri,)

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The file system of this storage."""
        return self._resolved[0]

    def path(self, *parts: str) -> str:
        """Join parts below the root, as the file system wants them."""
        return "/".join((self._resolved[1], *parts))

    def uri_of(self, *parts: str) -> str:
        """Join parts below the root, as other programs want them; a URI keeps its query at the end."""
        if self.is_local:
            return "/".join((self.uri, *parts))
        root, mark, query = self.uri.partition("?")
        return "/".join((root.rstrip("/"), *parts)) + mark + query

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Say in words of ours what the storage does not do in the block. That a file is not there is an answer.

        Raises:
            StorageError: it fails.
        """
        try:
            yield
        except (FileNotFoundError, StorageError):
            raise
        except OSError as error:
            problem = str(error).rstrip(".")
            raise StorageError(
                f"storage {without_user_info(self.uri)} fails: {problem}. Check that it can be reached, read and "
                "written with these credentials, and is not full. What is finished is kept there: the same command "
                "goes on from it."
            ) from error

    @contextmanager
    def open_input(self, path: str) -> Iterator[Any]:
        """Open a file to be read at any position; `path` as from `path()`.

        Raises:
            FileNotFoundError: there is none.
            StorageError: it cannot be opened, or read in the block.
        """
        with self.asked(), opened(self.filesystem, path) as stream:
            yield stream

    @contextmanager
    def open_output(self, path: str) -> Iterator[Any]:
        """Open a file to be written from its start, and its folder where the file system needs one.

        Raises:
            StorageError: it cannot be opened, or written in the block.
        """
        with self.asked():
            if self.is_local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            # Unless told not to, pyarrow compresses what is named .gz, which already is.
            with self.filesystem.open_output_stream(path, compression=None) as stream:
                yield stream

    def read_bytes(self, *parts: str) -> bytes | None:
        """Return a whole file, or None where there is none."""
        try:
            with self.open_input(self.path(*parts)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write a whole file, atomically where the file system is local."""
        path = self.path(*parts)
        partial = f"{path}.{uuid.uuid4().hex}.partial" if self.is_local else path
        with self.open_output(partial) as stream:
            stream.write(data)
        if self.is_local:
            with self.asked():
                Path(partial).replace(path)

    def create_exclusively(self, data: bytes, *parts: str) -> bool:
        """Write a whole file unless it exists; return whether it was this call that wrote it.

        A hard link decides on a local file system. An object store is checked, written and read back: of two
        writers in the same instant one may lose after having believed, so what is read back is what counts.
        """
        if self.is_local:
            with self.asked():
                return _link_exclusively(data, self.path(*parts))
        if self.read_bytes(*parts) is not None:
            return False
        self.write_bytes(data, *parts)
        return self.read_bytes(*parts) == data

    def list_folders(self, *parts: str) -> list[str]:
        """Return the names of the folders right below a place, sorted."""
        root = self.path(*parts)
        # On Google's store pyarrow shows only folders that were made, as ours are not: what lies below tells of them.
        is_recursive = self.filesystem.type_name == "gcs"
        with self.asked():
            infos = self.filesystem.get_file_info(pafs.FileSelector(root, True, is_recursive))
        paths = (f"{info.path}/" if info.type == pafs.FileType.Directory else info.path for info in infos)
        below = (path.removeprefix(f"{root}/").split("/") for path in paths)
        return sorted({name for name, *rest in below if rest})

    def delete_file(self, *parts: str) -> None:
        """Remove a file, if it is there."""
        with self.asked(), suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path(*parts))

    def delete_folder(self, *parts: str) -> None:
        """Remove a folder and everything in it, if it is there."""
        with self.asked(), suppress(FileNotFoundError):
            if self.filesystem.get_file_info(self.path(*parts)).type == pafs.FileType.Directory:
                self.filesystem.delete_dir(self.path(*parts))

    def check_reachable(self) -> None:
        """Refuse a storage that does not answer, or whose bucket is not there.

        Raises:
            ConfigError: it does not.
        """
        try:
            with waiting_told(self.uri):
                found = self.filesystem.get_file_info(self.path())
        except OSError as error:
            raise ConfigError(
                f"storage {without_user_info(self.uri)} cannot be reached: {str(error).rstrip('.')}. Expected a store "
                "that answers and lets us read; check the address, the network and the credentials."
            ) from error
        bucket = self.path().partition("/")[0]
        may_lack_bucket = found.type == pafs.FileType.NotFound and self.filesystem.type_name in ("s3", "gcs")
        if may_lack_bucket and is_missing(self.filesystem, bucket):
            raise ConfigError(
                f"storage {without_user_info(self.uri)}: there is no bucket {bucket!r}. Expected one that is there: "
                "check its name and the address of the store, or make it."
            )

    def check_writable(self) -> None:
        """Refuse a storage that cannot be written, before anything is computed for it.

        Raises:
            ConfigError: it cannot.
        """
        # A name of its own, since two runs may begin at once; exclusively, since a commit will need that.
        name = f"write-test-{uuid.uuid4().hex}"
        try:
            self.create_exclusively(b"", name)
            self.delete_file(name)
        except OSError as error:
            problem = str(error.__cause__ or error).rstrip(".")
            raise ConfigError(
                f"storage {without_user_info(self.uri)} cannot be written: {problem}. Give a folder or "
                "bucket that this user and these credentials may write to."
            ) from error


def _link_exclusively(data: bytes, path: str) -> bool:
    partial = Path(f"{path}.{uuid.uuid4().hex}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(data)
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        partial.unlink()
    return True
