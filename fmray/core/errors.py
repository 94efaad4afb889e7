"""Every error that a user may meet: what happened, where, and what to do, in one line, with its exit code."""


class FmrayError(Exception):
    """Base of all errors that fmray reports as one clear line.

    Args:
        what: what is wrong, as a sentence without its full stop.
        where: the dotted config path, file or step concerned.
        todo: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        self.what, self.where, self.todo = what, where, todo
        super().__init__(what, where, todo)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        if self.todo:
            line = f"{line}; {self.todo}"
        return " ".join(line.split())

    def __reduce__(self) -> tuple[object, ...]:
        """Travels between processes with its three parts intact."""
        return (_rebuild, (type(self), self.what, self.where, self.todo))


def _rebuild(cls: type[FmrayError], what: str, where: str, todo: str) -> FmrayError:
    return cls(what, where=where, todo=todo)


class RunError(FmrayError):
    """A fault in a run: something that was accepted broke while it ran."""


class ConfigError(FmrayError):
    """The experiment file or an override is wrong."""

    exit_code = 2


class ArtifactError(FmrayError):
    """An artifact is missing, incomplete, of another kind, held by another process or drifted."""

    exit_code = 2


class DataError(FmrayError):
    """The corpus or task data cannot be used as asked."""

    exit_code = 2


class ResourceError(FmrayError):
    """The cluster or machine lacks something that the run needs (workers, GPUs, a port)."""

    exit_code = 2


class GateRefused(FmrayError):
    """A gate refused, or no admitting decision covers what was to be searched, deployed or served."""

    exit_code = 3


class Terminated(FmrayError):
    """The run got SIGTERM and ended in order; the same command goes on where it stopped."""

    exit_code = 143
