"""Data sets of the Hugging Face hub, as `hf://datasets/owner/name@revision/path`.

pyarrow opens such URIs with `huggingface_hub`, which finds the token of a private data set by itself (`HF_TOKEN`).
To write, that variable is all that is looked at: a token that a login left on the machine may be meant for less.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from s2l_ray.errors import ConfigError
from s2l_ray.input_files import listed, shown

SCHEME = "hf://"


def at_commit(uri: str, key: str) -> str:
    """Return the URI with the commit that its revision stands for now, so that later reads meet the same bytes.

    Args:
        key: config path of the URI, for messages.

    Raises:
        ConfigError: it names no data set.
        OSError: the hub does not know it, does not let us in, or does not answer.
    """
    from huggingface_hub import HfApi, HfFileSystem

    try:
        found = HfFileSystem().resolve_path(uri)
        repo_type, repo_id = getattr(found, "repo_type", None), getattr(found, "repo_id", "")
        if repo_type != "dataset":
            raise ValueError("it names no data set")
        revision, inside = getattr(found, "revision", None), getattr(found, "path_in_repo", "")
        sha = HfApi().repo_info(repo_id, repo_type="dataset", revision=revision).sha
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"{key}: {uri!r}: {error}. Expected hf://datasets/owner/name, with @revision and /path where needed."
        ) from error
    except OSError:
        raise
    except Exception as error:  # of whichever HTTP library the hub's own uses
        raise OSError(str(error)) from error
    return f"{SCHEME}datasets/{repo_id}@{sha}/{inside}".rstrip("/")


def repository_of(uri: str) -> str:
    """Return `owner/name` of a data set's URI.

    Raises:
        ConfigError: it is none, or names a revision or a path, which have no meaning for a data set to be made.
    """
    found = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)/?", uri)
    if found is None:
        raise ConfigError(f"--to {uri!r}: expected hf://datasets/owner/name, without revision and path.")
    return found[1]


def check_may_push(repository: str, *, is_public: bool, replaces: bool) -> None:
    """Refuse what would overwrite a data set, or show it to more people or fewer than was asked for.

    Raises:
        ConfigError: it would, there is no token, or the hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    token = _token()
    with _told(repository, token):
        api = HfApi(token=token)
        try:
            is_private = bool(api.repo_info(repository, repo_type="dataset").private)
            files = [f for f in api.list_repo_files(repository, repo_type="dataset") if f != ".gitattributes"]
        except RepositoryNotFoundError:
            return
    if is_private == is_public:
        found, asked = ("private", "with") if is_private else ("public", "without")
        raise ConfigError(
            f"{repository} is {found} already, and this is {asked} --public. Change the data set's visibility on the "
            f"hub, or run the command {'without' if is_private else 'with'} --public."
        )
    if files and not replaces:
        raise ConfigError(
            f"{repository} holds {len(files)} files: {listed(files, 3)}. Expected a new or an empty data set; name "
            "another one, or replace all that it holds with --replace."
        )


def push(folder: str, repository: str, *, is_public: bool) -> str:
    """Make a folder the content of a data set, which is made where there is none; return its address.

    Raises:
        ConfigError: there is no token, or the hub refuses or does not answer.
    """
    from huggingface_hub import HfApi

    token = _token()
    with _told(repository, token):
        api = HfApi(token=token)
        made = api.create_repo(repository, repo_type="dataset", private=not is_public, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder,
            commit_message="Export of a subset",
            # `check_may_push` has found it empty, or was told that all of it may go.
            delete_patterns="*",
        )
    return str(made)


def _token() -> str:
    token = os.environ.get("HF_TOKEN", "")
    if not token:
        raise ConfigError("HF_TOKEN is not set. Expected a token of the hub with the right to write, in that variable.")
    return token


@contextmanager
def _told(repository: str, token: str) -> Iterator[None]:
    """Say in words of ours what the hub does not do in the block."""
    try:
        yield
    except Exception as error:  # of whichever HTTP library the hub's own uses
        problem = shown(" ".join(str(error).replace(token, "[redacted]").split()).rstrip("."), 300)
        raise ConfigError(
            f"{repository} cannot be written: {problem}. Expected a hub that answers, and a token in HF_TOKEN with the "
            "right to write there."
        ) from error
