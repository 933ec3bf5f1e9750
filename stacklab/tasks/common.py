"""What all tasks share: errors at the edge, help texts, the lab that is meant."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from invoke import Context, Exit

Task = TypeVar("Task", bound=Callable[..., None])

# What a machine or a path that was named can be to blame for; any other is a bug.
_PLACES = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
)


def edge(function: Task) -> Task:
    """Turn errors that a user can act on into a message and an exit code; all others are bugs.

    The settings `mirror` and `proxy` hold for all that the task does. The user's umask does not: what has
    to be private has a mode of its own, and programs of other users read the rest.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from stacklab import files, redact, signals
        from stacklab.errors import LabError

        os.umask(0o022)
        try:
            _network(args[0])
            with signals.like_ctrl_c():
                function(*args, **kwargs)
        except LabError as error:
            text = redact.text(error.message + (f"\nhint: {error.hint}" if error.hint else ""))
            raise Exit(text, code=error.exit_code) from None
        except BrokenPipeError:
            # Whoever read the output, such as `head`, has enough of it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            if error.errno not in _PLACES:
                raise
            place = f"{error.filename}: " if error.filename else ""
            text = f"{place}{error.strerror}\nhint: what was whole is kept; mend that and try again"
            if error.errno == errno.EACCES and Path(str(error.filename)).is_relative_to(files.labs_dir()):
                text = "the labs here are root's\nhint: scripts/stacklab TASK (it uses sudo)"
            raise Exit(redact.text(text), code=1) from None
        except KeyboardInterrupt:
            text = "\ninterrupted; what was whole is kept, and the same command goes on from there"
            raise Exit(text, code=130) from None

    return wrapped  # type: ignore[return-value]


def _network(c: Context) -> None:
    mirror, proxy = c.get("mirror"), c.get("proxy")
    if mirror or proxy:
        from stacklab import download

        if mirror:
            download.use_mirror(mirror)
        if proxy:
            download.use_proxy(proxy)


LAB = {"lab": "the lab's name; not needed where there is only one"}
TOPOLOGY = {
    "topology": "a topology's name or file",
    "distribution": "what the nodes run; auto: the topology's choice",
    "provider": "what a node is; auto: what works here",
}


def plan_of(
    c: Context, topology: str, lab: str, distribution: str, provider: str, own_network: bool = False
) -> Any:
    from stacklab import lab as labs

    return labs.plan_for(
        topology or c.topology,
        lab or c.lab,
        distribution or c.distribution,
        provider or c.provider,
        own_network=own_network or bool(c.get("own_network")),
    )


def open_lab(c: Context, lab: str) -> Any:
    from stacklab import lab as labs

    return labs.open_plan(lab or c.lab)


def words() -> list[str]:
    """What follows `--`, word by word."""
    return sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
