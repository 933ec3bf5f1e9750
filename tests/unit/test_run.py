"""run() with real small commands: what it returns, what it says, and what it leaves running (nothing)."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from stacklab import files, redact
from stacklab import run as module
from stacklab.errors import CommandFailed, LabError
from stacklab.run import Result, run

SECRET = "Tr0ub4dor-and-3"
# A busy machine may take long to start a shell; the bounds are on the time past it.
DEADLINE = 3.0


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(redact, "_secrets", set())
    redact.add([SECRET])
    return SECRET


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether a process ends; a zombie that nobody reaps has ended too."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_output_of_both_kinds_and_the_code() -> None:
    assert run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False) == Result(3, "out\nerr\n")
    assert run(["sh", "-c", "echo out; echo err >&2"], merge_stderr=False) == Result(0, "out\n")


def test_a_failure_shows_command_code_last_ten_lines_and_log(tmp_path: Path) -> None:
    log = tmp_path / "new" / "dir" / "run.log"
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "seq 1 12; exit 4"], log=log, hint="look there")
    tail = "".join(f"\n    {number}" for number in range(3, 13))
    assert caught.value.message == (
        f"sh -c 'seq 1 12; exit 4' ended with exit code 4{tail}\n  full log: {log}"
    )
    assert caught.value.hint == "look there"


def test_the_log_has_every_command_and_line(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    run(["echo", "a b"], log=log)
    run(["sh", "-c", "seq 1 12; exit 1"], log=log, check=False)
    seq = "".join(f"{number}\n" for number in range(1, 13))
    assert log.read_text() == f"$ echo 'a b'\na b\n$ sh -c 'seq 1 12; exit 1'\n{seq}"


def test_a_log_that_cannot_be_written_ends_the_command(tmp_path: Path) -> None:
    full = tmp_path / "full.log"
    full.symlink_to("/dev/full")
    with pytest.raises(LabError, match=r"full\.log: No space left on device"):
        run(["touch", tmp_path / "ran"], log=full)
    assert not (tmp_path / "ran").exists()
    assert run(["touch", tmp_path / "ran"], log=full, check=False).code == 0, "what ends a lab ends it"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(LabError, match=r"run\.log: File too large"):
            run(
                ["sh", "-c", 'echo $$ >"$0"; seq 1 2000; sleep 60', tmp_path / "pid"],
                log=tmp_path / "run.log",
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert gone(int((tmp_path / "pid").read_text()))


def test_secrets_are_in_neither_log_nor_message(secret: str, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", f"echo the {secret}; exit 1"], log=log)
    assert log.read_text() == "$ sh -c 'echo the ********; exit 1'\nthe ********\n"
    assert secret not in str(caught.value)
    assert "the ********" in str(caught.value)


def test_what_the_caller_gets_is_not_redacted(secret: str) -> None:
    seen: list[str] = []
    assert run(["echo", secret], each_line=seen.append).output == f"{secret}\n"
    assert seen == [secret]


def test_lines_come_as_they_are_written(tmp_path: Path) -> None:
    go = tmp_path / "go"

    def each(line: str) -> None:
        if line == "first":
            go.touch()  # only now does the command go on

    script = f"echo first; while [ ! -e {go} ]; do sleep 0.02; done; echo second"
    assert run(["sh", "-c", script], each_line=each, timeout=20).output == "first\nsecond\n"


def test_stdin() -> None:
    assert run(["cat"], stdin="one\ntwo").output == "one\ntwo"
    assert run(["cat"]).output == ""  # closed, never the terminal


def test_a_command_that_reads_no_stdin_is_judged_by_its_code() -> None:
    with pytest.raises(CommandFailed, match="exit code 7"):
        run(["sh", "-c", "exit 7"], stdin="x" * (1 << 20))


def test_env_is_added_to_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STACKLAB_OUTER", "outer")
    argv = ["sh", "-c", 'echo "$STACKLAB_OUTER $STACKLAB_INNER"; pwd']
    assert run(argv, env={"STACKLAB_INNER": "inner"}, cwd=tmp_path).output == f"outer inner\n{tmp_path}\n"
    assert run(argv, cwd=tmp_path).output == f"outer \n{tmp_path}\n"


def test_odd_bytes_do_not_stop_it(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    assert run(["printf", r"caf\351\n"], log=log).output == "caf\N{REPLACEMENT CHARACTER}\n"
    assert log.read_text().endswith("caf\N{REPLACEMENT CHARACTER}\n")


@pytest.mark.parametrize(
    ("hint", "shown"), [("", "`invoke doctor` says what to install"), ("apt", "apt")], ids=["own", "given"]
)
def test_a_missing_command_gives_a_hint(hint: str, shown: str, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as caught:
        run(["no-such-command-here", "x"], log=tmp_path / "log", hint=hint, check=False)
    assert (caught.value.message, caught.value.hint) == ("no-such-command-here: not found", shown)
    assert (tmp_path / "log").read_text() == "$ no-such-command-here x\n"


def test_past_the_deadline_the_children_end_too() -> None:
    seen: list[str] = []
    started = time.monotonic()
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "sleep 20 & echo $!; wait"], timeout=DEADLINE, each_line=seen.append, check=False)
    assert time.monotonic() - started < DEADLINE + 4.6
    assert f"did not end within {DEADLINE:.0f} s" in caught.value.message
    assert gone(int(seen[0]))


def test_what_ignores_the_first_signal_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "stop", partial(module.stop, grace=0.2))
    seen: list[str] = []
    stubborn = "trap '' TERM; sh -c 'echo $$; exec sleep 20' & echo $$; wait"
    started = time.monotonic()
    with pytest.raises(CommandFailed, match="did not end within"):
        run(["sh", "-c", stubborn], timeout=DEADLINE, each_line=seen.append)
    assert time.monotonic() - started < DEADLINE + 9.6
    assert len(seen) == 2
    assert all(gone(int(pid)) for pid in seen)


def test_an_interrupt_ends_the_command() -> None:
    seen: list[str] = []

    def each(line: str) -> None:
        seen.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", "echo $$; exec sleep 20"], each_line=each)
    assert gone(int(seen[0]))


def test_the_command_dies_with_its_killed_parent() -> None:
    program = (
        "from stacklab.run import run\n"
        "run(['sh', '-c', 'echo $$; exec sleep 20'], each_line=lambda line: print(line, flush=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=files.PROJECT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
        assert gone(child)
