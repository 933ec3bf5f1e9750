"""Signatures of publishers, checked by gpgv against a pinned fingerprint.

A keyring proves nothing by itself: whoever could change a download could change the key beside it.
So what counts is whose key made the signature, and that is in stacklab's own data.
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from pathlib import Path

from stacklab.errors import LabError
from stacklab.run import run

_ARMOR = re.compile(r"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END PGP", re.DOTALL)


def signed_text(signed: bytes, key: bytes, fingerprint: str, detached: bytes = b"") -> str:
    """The text that the key of `fingerprint` (40 hex digits, of the primary key) has signed.

    `signed` is clear-signed, or what the signature `detached` is of; `key` is a public key or a
    keyring, armored or not. Of a clear-signed text only what the signature covers is returned.
    Raises LabError for a bad signature, for one by another key and for a key that cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="stacklab-gpgv-") as directory:
        place = Path(directory)
        (place / "keyring").write_bytes(_dearmored(key))
        (place / "signed").write_bytes(signed)
        argv: list[str | Path] = ["gpgv", "--homedir", place, "--status-fd", "1"]
        argv += ["--keyring", place / "keyring"]
        if detached:
            (place / "detached").write_bytes(detached)
            argv += [place / "detached", place / "signed"]
        else:
            argv += ["--output", place / "text", place / "signed"]
        result = run(argv, timeout=60, check=False, hint="gpgv comes with the package gpgv (EL: gnupg2)")
        by = re.findall(r"^\[GNUPG:\] VALIDSIG .*\b([0-9A-F]{40})$", result.output, re.MULTILINE)
        good = result.code == 0 and "\n[GNUPG:] GOODSIG " in f"\n{result.output}"
        if not good or by != [fingerprint]:
            raise LabError(
                f"the publisher's list of checksums: {_why(result.output, by, fingerprint)}",
                hint="somebody changed it on the way, or the publisher has a new key: see what he says",
            )
        text = signed if detached else (place / "text").read_bytes()
        return text.decode("utf-8", "replace")


def _why(said: str, by: list[str], fingerprint: str) -> str:
    if "[GNUPG:] BADSIG" in said:
        return "the signature is bad"
    if by or "[GNUPG:] NO_PUBKEY" in said or "[GNUPG:] ERRSIG" in said:
        other = by[0] if by else (re.findall(r"NO_PUBKEY (\S+)", said) or ["another key"])[0]
        return f"signed by {other}, not by {fingerprint}"
    if "[GNUPG:] EXPKEYSIG" in said or "[GNUPG:] REVKEYSIG" in said:
        return f"the key {fingerprint} has expired or was revoked"
    return "there is no signature that gpgv can read"


def _dearmored(key: bytes) -> bytes:
    """The key as gpgv wants it. The checksum line of an armor is left out: the fingerprint decides."""
    blocks = _ARMOR.findall(key.decode("latin-1"))
    if not blocks:
        return key
    try:
        return b"".join(base64.b64decode(_body(block), validate=True) for block in blocks)
    except binascii.Error as error:
        raise LabError(f"what should be the publisher's key is none: {error}") from error


def _body(block: str) -> str:
    lines = [line.strip() for line in block.splitlines()]
    # Headers end with an empty line; the checksum begins with =.
    start = lines.index("") + 1 if "" in lines else 0
    return "".join(line for line in lines[start:] if line and not line.startswith("="))
