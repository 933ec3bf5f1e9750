"""Downloads that go on where they broke off, and are used only when their checksum is right."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, urlsplit

import requests

from stacklab import files, redact
from stacklab.errors import InvalidInput, LabError, Problem

Progress = Callable[[int, int], None]

_BLOCK = 1 << 16  # of a block that a cut ends nothing is kept
_ATTEMPTS = 6  # in a row without a single new byte
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_STALLED = (15.0, 60.0)  # seconds to connect, and without a byte, then the connection counts as dead
_LIST_BYTES = 4 << 20
_HEX = {64: "sha256", 128: "sha512"}


class _Broken(Exception):
    """The connection ended early; what came is kept."""


def fetch(url: str, path: Path, digest: str, progress: Progress | None = None) -> None:
    """Have what is at `url` in the file `path`, if its `digest` (sha256:HEX, sha512:HEX) is right.

    Where it is there already, nothing is asked of the server.
    What came of an earlier, broken download is kept beside `path` and continued, if the server
    still has the same file. `progress` is called with (bytes so far, bytes in all, 0 when the
    server does not say). Raises LabError when the server refuses, when six attempts in a row bring
    nothing, and for a wrong digest; then there is no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, _, expected = digest.partition(":")
    if path.exists() and _hex(path, kind) == expected:
        return
    part = path.with_name(f".{path.name}.part")
    pause, failures, most = _FIRST_PAUSE, 0, _size(part)
    while True:
        try:
            _attempt(url, part, progress)
            break
        except (_Broken, requests.RequestException) as error:
            # A server without ranges begins anew each time: only what was never had before is progress.
            failures = 0 if _size(part) > most else failures + 1
            most = max(most, _size(part))
            if failures >= _ATTEMPTS:
                raise LabError(
                    f"{url}: cannot be downloaded: {_cause(error)}",
                    hint="what came so far is kept; the same command goes on from there",
                ) from error
            pause = _FIRST_PAUSE if failures == 0 else min(pause * 2, _LONGEST_PAUSE)
            time.sleep(pause)
    _check(url, part, digest)
    part.replace(path)
    _validator(part).unlink(missing_ok=True)


def published(checksums: str, url: str) -> str:
    """The digest, as sha512:HEX or sha256:HEX, that the list at `checksums` gives for the file of `url`.

    Raises LabError when the list cannot be had or does not name the file.
    """
    name = PurePosixPath(urlsplit(url).path).name
    try:
        text = content(checksums).decode("utf-8", "replace")
    except LabError as error:
        raise LabError(
            error.message, hint="pin the image with `digest` instead, or try again later"
        ) from error
    found = parse(text).get(name)
    if found is None:
        raise LabError(
            f"{checksums} has no checksum of {name}",
            hint="is it the list of that directory? `digest` pins the image instead",
        )
    return found


def content(url: str) -> bytes:
    """What is at `url`, at most 4 MiB of it: a list of checksums, a signature, a key.

    Raises LabError when it cannot be had.
    """
    try:
        with requests.get(url, timeout=_STALLED, stream=True) as answer:
            answer.raise_for_status()
            return b"".join(itertools.islice(answer.iter_content(_BLOCK), _LIST_BYTES // _BLOCK))
    except requests.RequestException as error:
        raise LabError(f"{url} cannot be had: {_cause(error)}", hint="is the network there?") from error


def parts_of(url: str) -> SplitResult | None:
    """The parts of an http or https URL; None for what is none."""
    try:
        parts = urlsplit(url)
    except ValueError:  # such as http://[::1
        return None
    return parts if parts.scheme in ("http", "https") and parts.hostname else None


def mirror() -> str:
    """The setting `mirror`: a root of the publisher's tree, asked before the publisher; '' without one."""
    return os.environ.get("STACKLAB_MIRROR", "").rstrip("/")


def use_mirror(url: str) -> None:
    """Ask the mirror at `url` first from now on. Raises InvalidInput for what is no URL."""
    if parts_of(url) is None:
        message = f"{url!r} is not a mirror: write it such as https://mirror.example/rocky"
        raise InvalidInput([Problem("", "mirror", message)])
    os.environ["STACKLAB_MIRROR"] = url


def use_proxy(url: str) -> None:
    """Have all downloads, and all programs that are started from now on, go through the proxy at `url`.

    What is asked of this machine itself never does. Raises InvalidInput for what is no proxy's URL.
    """
    parts = parts_of(url)
    if parts is None:
        message = f"{url!r} is not a proxy: write it such as http://proxy.example:3128"
        raise InvalidInput([Problem("", "proxy", message)])
    redact.add([parts.password or ""])
    for name in ("http_proxy", "https_proxy"):
        os.environ[name] = os.environ[name.upper()] = url
    local = ["localhost", "127.0.0.1", "::1"]
    kept = [name for name in os.environ.get("no_proxy", "").split(",") if name and name not in local]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*kept, *local])


def parse(text: str) -> dict[str, str]:
    """Digests by file name, from a list as sha512sum writes it, plain or with --tag. sha512 wins."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        tagged = re.fullmatch(r"SHA(?:256|512) ?\((.+)\) ?= ?([0-9A-Fa-f]+)\s*", line)
        plain = re.fullmatch(r"([0-9A-Fa-f]+) [ *](.+?)\s*", line)
        name, digits = tagged.groups() if tagged else reversed(plain.groups()) if plain else ("", "")
        name = name.removeprefix("./")
        kind = _HEX.get(len(digits))
        if kind and (kind == "sha512" or name not in found):
            found[name] = f"{kind}:{digits.lower()}"
    return found


def _attempt(url: str, part: Path, progress: Progress | None) -> None:
    """Fetch what is missing. Raises _Broken when the connection ends early, LabError on a refusal."""
    have, known = _size(part), _read(_validator(part))
    headers = {"Accept-Encoding": "identity"}
    if have and known:
        # Another file under the same address comes whole, with 200.
        headers |= {"Range": f"bytes={have}-", "If-Range": known}
    with requests.get(url, headers=headers, stream=True, timeout=_STALLED) as answer:
        if answer.status_code == 416:
            _restart(part)
            raise _Broken("the server has less than what came before")
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            raise _Broken(f"the server says {answer.status_code} {answer.reason}")
        if not answer.ok:
            raise LabError(
                f"{url}: the server says {answer.status_code} {answer.reason}",
                hint="has the image moved? the catalogue's `url` is where to change it",
            )
        start = _continues(answer, have)
        if not start:
            _restart(part)
            # A weak ETag must not be used with ranges: https://www.rfc-editor.org/rfc/rfc9110#name-if-range
            tag = answer.headers.get("ETag", "")
            files.write(
                _validator(part), tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")
            )
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else 0
        _receive(answer, part, start, total, progress)


def _continues(answer: requests.Response, have: int) -> int:
    """Where what the server sends begins, in bytes: `have`, or 0."""
    if answer.status_code != 206:
        return 0
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if not match or int(match[1]) != have:
        raise _Broken("the server sends another part than was asked for")
    return have


def _receive(
    answer: requests.Response, part: Path, start: int, total: int, progress: Progress | None
) -> None:
    size = start
    with part.open("ab") as handle:
        for block in answer.iter_content(_BLOCK):
            handle.write(block)
            size += len(block)
            if progress:
                progress(size, total)
    # Some versions of urllib3 take an early end for the end.
    if total and size != total:
        raise _Broken(f"the connection ended after {size} of {total} bytes")


def _check(url: str, part: Path, digest: str) -> None:
    kind, _, expected = digest.partition(":")
    actual = _hex(part, kind)
    if actual != expected:
        _restart(part)
        raise LabError(
            f"{url}: the {kind} is {actual}, not {expected}: the download is thrown away",
            hint="another version was published, or somebody changed it: see what the publisher says",
        )


def _hex(path: Path, kind: str) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, kind).hexdigest()


def _restart(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)


def _validator(part: Path) -> Path:
    """Where the ETag or the date of the file that `part` is of is kept."""
    return part.with_name(f"{part.name}.of")


def _read(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8")
    return ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _cause(error: BaseException) -> str:
    """The innermost reason: requests wraps it several times."""
    text = str(error)
    if "IncompleteRead" in text:
        return "the connection ends early, again and again"
    inner = re.findall(r"\[Errno -?\d+\] ([^'\")]+)", text)
    return inner[-1].strip() if inner else text[:200]
