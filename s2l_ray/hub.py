"""Data sets of the Hugging Face hub, as `hf://datasets/owner/name@revision/path`.

pyarrow opens such URIs with `huggingface_hub`, which finds the token of a private data set by itself (`HF_TOKEN`).
"""

from s2l_ray.errors import ConfigError

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
