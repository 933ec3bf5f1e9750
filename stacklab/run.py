"""The one way in which stacklab runs other programs."""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from stacklab import redact
from stacklab.errors import CommandFailed, LabError

# A killed stacklab must not leave a build running that the next run would start again.
_WITH_PARENT = ("setpriv", "--pdeathsig", "TERM", "--")


@dataclass(frozen=True)
class Result:
    """What a command said (standard output and error as one text) and its exit code."""

    code: int
    output: str


def stop(process: subprocess.Popen[bytes], grace: float = 10.0) -> None:
    """End a process that `run` started together with its children, at last by SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=grace)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


@contextmanager
def _as_file(text: str) -> Iterator[IO[bytes] | int]:
    # A pipe would have to be fed while the output is read.
    if not text:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as handle:
        handle.write(text.encode())
        handle.seek(0)
        yield handle


def _lines(process: subprocess.Popen[bytes], end: float) -> Iterator[str]:
    """The lines that a process writes, until it has ended or the time is `end`.

    What it leaves running may hold its output open: that is not waited for.
    """
    assert process.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < end:
            ended = process.poll() is not None
            if ready.select(timeout=0 if ended else 0.2):
                block = os.read(process.stdout.fileno(), 65536)
                *whole, rest = (rest + block).split(b"\n")
                yield from (line.decode(errors="replace") + "\n" for line in whole)
                if block:
                    continue
                # It closed its output; it may take a moment more to end.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(end - time.monotonic(), 0))
                break
            if ended:
                break
    process.stdout.close()
    if rest:
        yield rest.decode(errors="replace")


@contextmanager
def _opened(log: Path | None, needed: bool) -> Iterator[Callable[[str], None]]:
    """What adds a text to the log, secrets redacted. LabError when it is `needed` and cannot be written."""
    if log is None:
        yield lambda text: None
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    # Without a buffer: a full disk would refuse what is left in it once more at the end.
    with log.open("ab", buffering=0) as handle:

        def note(text: str) -> None:
            try:
                handle.write(redact.text(text).encode(errors="replace"))
            except OSError as error:
                if not needed:
                    return
                hint = "what was whole is kept; mend that and try again"
                raise LabError(f"{log}: {error.strerror}", hint=hint) from error

        yield note


def run(
    argv: Sequence[str | Path],
    *,
    log: Path | None = None,
    timeout: float = 600.0,
    check: bool = True,
    hint: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str = "",
    each_line: Callable[[str], None] | None = None,
    merge_stderr: bool = True,
) -> Result:
    """Run `argv` to its end and return what it said.

    `timeout` is in seconds; past it the command and its children are ended. `log`
    gets the command line and its output, secrets redacted. `each_line` is called with
    every line as it comes. `env` is added to the environment.

    Raises CommandFailed, with the last ten lines and the log's path, when `check` is
    set and the command fails, and always when it runs out of time. Where the log cannot
    be written, as on a full disk, the command is ended by a LabError if `check` is set.
    """
    words = [str(word) for word in argv]
    lines: list[str] = []
    with _opened(log, check) as note:
        note(f"$ {shlex.join(words)}\n")
        if shutil.which(words[0]) is None:
            raise CommandFailed(f"{words[0]}: not found", hint=hint or "`invoke doctor` says what to install")
        with _as_file(stdin) as source:
            process = subprocess.Popen(
                [*_WITH_PARENT, *words],
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if merge_stderr else subprocess.DEVNULL,
                cwd=cwd,
                env={**os.environ, **env} if env else None,
                process_group=0,
            )
        end = time.monotonic() + timeout
        try:
            for line in _lines(process, end):
                lines.append(line)
                note(line)
                if each_line is not None:
                    each_line(line.rstrip("\n"))
            code = process.poll()
            if code is None:
                stop(process)
        except BaseException:
            stop(process)
            raise
    output = "".join(lines)
    if code is None:
        raise CommandFailed(_report(words, f"did not end within {timeout:.0f} s", output, log), hint=hint)
    if check and code != 0:
        raise CommandFailed(_report(words, f"ended with exit code {code}", output, log), hint=hint)
    return Result(code, output)


def _report(words: Sequence[str], what: str, output: str, log: Path | None) -> str:
    tail = "".join(f"\n    {line}" for line in output.splitlines()[-10:])
    where = f"\n  full log: {log}" if log else ""
    return redact.text(f"{shlex.join(words)} {what}{tail}{where}")
