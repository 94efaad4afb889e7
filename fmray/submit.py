"""`fmray submit`: the same argv as a Ray job, its log followed, its real exit code returned."""

import asyncio
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from fmray.core.errors import ConfigError, ResourceError, RunError
from fmray.core.provenance import GIT_VARIABLE, git_state

STOPPED_EXIT_CODE = 143


def submit(argv: Sequence[str], *, storage: str, address: str | None, working_dir: str) -> int:
    """Runs `python -m fmray run *argv --storage STORAGE` on the cluster at `address` and returns its exit code.

    Args:
        address: the dashboard of the cluster (`http://host:8265`); else RAY_API_SERVER_ADDRESS or RAY_ADDRESS say it.
        storage: must be absolute: a job's working folder vanishes with the job.

    Raises:
        ConfigError: a relative storage, or a working folder without the experiment file.
        ResourceError: no Ray dashboard answers at the address, or it refuses the token.
        RunError: the job ended without an exit code.
    """
    if not (storage.startswith("/") or re.match(r"^[a-z][a-z0-9+.-]*://", storage)):
        raise ConfigError(f"'{storage}' is relative, and the job's folder vanishes with the job", where="--storage", todo="give an absolute path or URI that every node can write to")
    if not (Path(working_dir) / argv[0]).is_file():
        raise ConfigError(f"there is no '{argv[0]}' below {working_dir}", where="--working-dir", todo="run it where the experiment file lies; its path is relative to that folder")
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address or os.environ.get("RAY_API_SERVER_ADDRESS"))
        entrypoint = shlex.join(["python", "-m", "fmray", "run", *argv, "--storage", storage])
        job = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": working_dir, "env_vars": _git_variables()})
    except ConnectionError as error:
        raise ResourceError(f"no Ray dashboard answers ({str(error).splitlines()[0]})", where=address or "RAY_ADDRESS", todo="start it with `ray start --head`, or give --address http://HOST:8265") from None
    except Exception as error:
        # Ray raises plain RuntimeError for an upload that is too large, a refused token and a bad runtime_env alike.
        raise ResourceError(f"the job was not taken: {str(error).splitlines()[0]}", where="submit", todo="check the token, and keep large folders out with .rayignore") from error
    print(f"job {job} · stop it with: ray job stop {job}", flush=True)
    asyncio.run(_follow(client, job))
    info = client.get_job_info(job)
    if info.driver_exit_code is None:
        if str(info.status) == "STOPPED":
            return STOPPED_EXIT_CODE
        raise RunError(f"the job ended as {info.status} without an exit code: {(info.message or 'no message').splitlines()[0]}", where=job)
    return int(info.driver_exit_code)


def _git_variables() -> dict[str, str]:
    commit, dirty = git_state()
    return {GIT_VARIABLE: f"{commit}+dirty" if dirty else commit} if commit else {}


async def _follow(client: object, job: str) -> None:
    async for lines in client.tail_job_logs(job):  # type: ignore[attr-defined]
        sys.stdout.write(lines)
        sys.stdout.flush()
