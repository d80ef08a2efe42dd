"""`s2l submit`: a run as a job of a Ray cluster, its log followed, its exit code passed on.

The job gets the current directory and the very line that would run here. The cluster's address and token are read by
Ray itself, from the environment.
"""

import asyncio
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s2l_ray.errors import ConfigError, JobFailed, StageFailed
from s2l_ray.log import display, without_user_info
from s2l_ray.stages.runtime import quieten

LOCAL_STORAGES = ".s2l*/"
"""What runs on this machine have left in the directory: no job needs it."""


def submit(line: Sequence[str], runtime_env: Mapping[str, Any], *, wait: bool) -> dict[str, Any]:
    """Submit a command line; with `wait` follow it to its end.

    Args:
        line: the words of the command.
        runtime_env: Ray's runtime environment; its `working_dir` is the current directory whatever it says.
        wait: show the job's log and return when it has ended.

    Returns:
        The job's id, its status and the server's address.

    Raises:
        ConfigError: no job server answers, it refuses the token, or the line holds a password.
        JobFailed: the job ended with another exit code than 0.
        KeyboardInterrupt: the job was stopped, or we are to follow it no longer.
        StageFailed: the server cannot take the job, or was lost while it ran.
    """
    from ray.exceptions import AuthenticationError

    entry_point = shlex.join(line)
    if without_user_info(entry_point) != entry_point:
        raise ConfigError(
            "the line to submit holds a URL with a user or password, and Ray shows the lines of its jobs to everybody "
            "on the cluster. Give the nodes a role or a secret of their own, and the URL without it."
        )
    try:
        client = _connected()
        excludes = [*runtime_env.get("excludes", ()), LOCAL_STORAGES]
        sent = {**runtime_env, "working_dir": str(Path.cwd()), "excludes": excludes}
        job = _submitted(client, entry_point, sent)
        address = client.get_address()
        display.say(f"job {job} at {address}: {entry_point}")
        if wait:
            _follow(client, job)
        else:
            display.say(f"It goes on by itself: {_how_to_go_on(address, job)}")
        return {"job": job, "status": client.get_job_status(job).value, "address": address}
    except AuthenticationError as error:
        raise ConfigError(
            f"the cluster refuses us: {_first_sentence(error)} Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH, to the cluster's token; on its head `ray get-auth-token` shows it."
        ) from error


def _connected() -> Any:
    from ray.job_submission import JobSubmissionClient

    quieten()
    try:
        return JobSubmissionClient()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no job server: {_first_sentence(error)} Expected the address of a cluster's dashboard in --address, "
            "RAY_API_SERVER_ADDRESS or RAY_ADDRESS, e.g. http://127.0.0.1:8265 once its port is forwarded here."
        ) from error


def _submitted(client: Any, entry_point: str, runtime_env: dict[str, Any]) -> str:
    try:
        return str(client.submit_job(entrypoint=entry_point, runtime_env=runtime_env))
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise StageFailed(
            f"the job server did not take the job: {_first_sentence(error)} Where the directory is too large, name "
            "in .rayignore what the job does not need; else try again."
        ) from error


def _follow(client: Any, job: str) -> None:
    import aiohttp

    address = client.get_address()
    try:
        asyncio.run(_show_log(client, job))
        info = client.get_job_info(job)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"job {job} goes on without us: {_how_to_go_on(address, job)}") from interrupt
    except (OSError, RuntimeError, aiohttp.ClientError) as error:
        raise StageFailed(
            f"lost {address}: {_first_sentence(error)} The job may go on: {_how_to_go_on(address, job)}"
        ) from error
    if info.status == "STOPPED":
        raise KeyboardInterrupt(f"job {job} was stopped. The same command goes on from there.")
    if info.status != "SUCCEEDED":
        code = info.driver_exit_code
        why = f"exit code {code}; `ray job logs --address {address} {job}` shows its output" if code else info.message
        raise JobFailed(f"job {job} failed: {why}", code or 1)


async def _show_log(client: Any, job: str) -> None:
    rest = ""
    async for text in client.tail_job_logs(job):
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            display.say(line)
    if rest:
        display.say(rest)


def _how_to_go_on(address: str, job: str) -> str:
    return (
        f"`ray job logs --address {address} --follow {job}` shows its output, "
        f"`ray job stop --address {address} {job}` ends it."
    )


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".") + "."
