"""The errors that a user can do something about. Anything else is a bug and shows its traceback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class LabError(Exception):
    """Something went wrong that a user can act on.

    `hint` says what to type or where to look; `exit_code` is the process's.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an input file.

    `where` is the file, `path` the dotted keys inside it, `message` names the value
    and says what would be right.
    """

    where: str
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.path, self.message) if part)


class InvalidInput(LabError):
    """All problems of the input at once; nothing was started."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem], hint: str = "") -> None:
        super().__init__("\n".join(str(problem) for problem in problems), hint)
        self.problems = tuple(problems)


class CommandFailed(LabError):
    """A command ended with an error or ran past its deadline."""


class Busy(LabError):
    """Another process holds the lock."""


class NotHealthy(LabError):
    """Something of the lab did not answer; the message names what and where to look."""


class Interrupted(LabError):
    """Stopped by Ctrl-C or a signal like it; the hint says what goes on from here."""

    exit_code = 130
