"""The Ray that a run uses: the cluster that it was pointed at, else a private local one that ends with the process."""

import atexit
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from fmray.core import plugins
from fmray.core.errors import FmrayError, ResourceError, RunError

R = TypeVar("R")

# Ray Train's controller answers report() once per poll; its default of 2 s would cost as much at every checkpoint.
ENVIRONMENT = {
    # A tenth of a second finds no lost worker much sooner, and costs a percent of two cores.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Ray Serve replaces its HTTP proxy after three checks that failed: at its own ten seconds nothing answers for half a minute.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    # Serve's own processes answer each other over gRPC: as objects of Ray every piece of a stream costs more.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_PROXY_USE_GRPC": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
OBJECT_STORE_BYTES = 400 * 1024**2
# Ray itself gives a driver up a minute after its head, and aborts it then.
HEAD_SILENT_S, ASK_EVERY_S = 20.0, 2.0
_private = False
_lost = False
_folder: str | None = None


def connect() -> None:
    """Connects this process to Ray once: to RAY_ADDRESS or the job's own cluster when there is one, else to a private local Ray.

    Plugins are installed on every worker by their source text.

    Raises:
        ResourceError: the cluster that RAY_ADDRESS names does not answer.
        RunError: a local Ray did not start.
    """
    import ray

    global _folder, _private
    if ray.is_initialized():
        return
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    options: dict[str, Any] = {"logging_level": "WARNING"}
    _private = not os.environ.get("RAY_ADDRESS")
    if not _private:
        _require_head(os.environ["RAY_ADDRESS"])
    # The processes of a Ray of one's own inherit them; asked for once more, they would be started anew beside those that wait already.
    runtime_env: dict[str, Any] = {} if _private else {"env_vars": {k: os.environ[k] for k in ENVIRONMENT}}
    texts = plugins.sources()
    if texts:
        runtime_env["worker_process_setup_hook"] = _plugin_hook(texts)
    if _private:
        _folder = folder = _short_temporary_folder()
        atexit.register(close)
        # A machine of one core still runs two workers: they share it.
        options |= {
            "address": "local", "include_dashboard": False, "num_cpus": max(2, os.cpu_count() or 1),
            "object_store_memory": OBJECT_STORE_BYTES, "_temp_dir": folder,
        }  # fmt: skip
    try:
        ray.init(runtime_env=runtime_env, **options)
    except Exception as error:  # Ray's are of many kinds here, plain Exception among them
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if _private:
            raise RunError(f"a local Ray did not start ({said})", todo="the same command goes on; the machine may be too busy, or short of memory or of room in its temporary folder") from error
        raise _no_head(os.environ["RAY_ADDRESS"], said) from error


def _require_head(address: str) -> None:
    """Asks whether something listens at an address with a port: Ray itself would try for minutes and say nothing."""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not port.isdecimal():
        return
    deadline = time.monotonic() + HEAD_SILENT_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_EVERY_S).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise _no_head(address, str(error)) from None
            time.sleep(ASK_EVERY_S / 2)


def _no_head(address: str, said: str) -> ResourceError:
    return ResourceError(f"no Ray answers there ({said})", where=f"RAY_ADDRESS={address}", todo="start one with `ray start --head`, or unset it for a local one")


def close() -> None:
    """Ends the private Ray, if one was started, and removes its session folder."""
    global _folder, _private
    if _folder is not None:
        import ray

        ray.shutdown()
        shutil.rmtree(_folder, ignore_errors=True)
        _folder, _private = None, False


def is_private() -> bool:
    """Whether fmray itself started the Ray in use, which ends with this process."""
    return _private


def is_lost() -> bool:
    """Whether a `Head` was found to be gone: Ray's own good-bye would then wait for it, and abort this process."""
    return _lost


class Head:
    """Asks whether the head of the cluster in use still answers; one that comes back within `HEAD_SILENT_S` is not missed."""

    def __init__(self) -> None:
        import ray

        self._address = ray.get_runtime_context().gcs_address
        self._heard = self._asked = time.monotonic()

    def __call__(self) -> None:
        """Asks, if it is time to.

        Raises:
            RunError: it has not answered for so long that it is gone.
        """
        if time.monotonic() - self._asked >= ASK_EVERY_S and not self.answers() and time.monotonic() - self._heard > HEAD_SILENT_S:
            self.give_up()

    def answers(self) -> bool:
        """Whether it does now."""
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_EVERY_S).close()
            self._heard = time.monotonic()
        except OSError:
            return False
        finally:
            self._asked = time.monotonic()
        return True

    def give_up(self) -> NoReturn:
        """Ends the use of this cluster.

        Raises:
            RunError: always.
        """
        global _lost
        _lost = True
        raise RunError(f"the head of the Ray cluster is gone: {self._address} does not answer", todo="the same command goes on from the last state, on this cluster when it is back or on another")


def _plugin_hook(texts: Mapping[str, str]) -> Callable[[], None]:
    """What runs first in every worker process. Ray wants a function with a name here, so a closure and no object."""

    def install_plugins() -> None:
        plugins.install(texts)

    return install_plugins


def _short_temporary_folder() -> str:
    # Ray puts Unix sockets below it, whose paths may have at most 107 characters.
    base = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="fmray", dir=base if len(base) <= 30 else "/tmp")


def require(bundles: Sequence[Mapping[str, float]], wait_s: float) -> None:
    """Waits until the cluster as a whole could hold these bundles at once.

    Counts what the cluster has, not what is free just now, and gives an autoscaler `wait_s` seconds to bring it.

    Raises:
        ResourceError: it still lacks something, which the message names.
    """
    import ray

    connect()
    if not _private:
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[dict(b) for b in bundles])
    total: dict[str, float] = {}
    for bundle in bundles:
        for key, amount in bundle.items():
            total[key] = total.get(key, 0.0) + amount
    deadline = time.monotonic() + wait_s
    while True:
        have: Mapping[str, float] = ray.cluster_resources()
        missing = {k: (v, have.get(k, 0.0)) for k, v in total.items() if v > have.get(k, 0.0) + 1e-9}
        if not missing:
            return
        if time.monotonic() >= deadline:
            named = ", ".join(f"{key}: {_number(asked)} asked, {_number(there)} there" for key, (asked, there) in missing.items())
            raise ResourceError(f"the cluster lacks resources after {_number(wait_s)} s of waiting ({named})", todo="ask for fewer workers or add nodes")
        time.sleep(min(1.0, wait_s))


def _number(value: float) -> str:
    return f"{value:g}"


def call(function: Callable[..., R], *args: Any, num_cpus: float = 1.0, num_gpus: float = 0.0, max_retries: int = 1) -> R:
    """Runs `function(*args)` in a fresh Ray worker process that ends afterwards, which frees all that torch took.

    A process that is lost is replaced by another, which begins anew, `max_retries` times.

    Raises:
        FmrayError: the function raised it.
        RunError: it failed otherwise; the message names the error.
    """
    import ray

    connect()
    bundle = {"CPU": num_cpus} | ({"GPU": num_gpus} if num_gpus else {})
    require([bundle], wait_s=60.0)
    remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_calls=1, max_retries=max_retries)(function)
    try:
        result: R = ray.get(remote.remote(*args))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, FmrayError):
            raise cause from None
        raise RunError(f"{function.__name__} failed: {type(cause).__name__}: {cause}") from error
    except ray.exceptions.RayError as error:
        raise RunError(f"{function.__name__} was lost: {str(error).splitlines()[0]}") from error
    return result
