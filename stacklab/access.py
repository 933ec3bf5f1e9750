"""How a build gets into the machine that it makes: a key of its own, never a password.

An installer puts the key there itself (packer/kickstart). A disk finds it on drives beside it:
cloud images by cloud-init (NoCloud), golden images of our own by stacklab-seed.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

from stacklab import files
from stacklab.run import run

_KIBIBYTES = 1440
_NETWORKD = "[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\n"
_NETWORK_MANAGER = "[connection]\nid=build\ntype=ethernet\n\n[ipv4]\nmethod=auto\n\n[ipv6]\nmethod=disabled\n"
_NAME_SERVER = "nameserver 10.0.2.3\n"  # QEMU's own, in its user network


def make_key(place: Path) -> tuple[Path, str]:
    """A key pair for one build, in `place`: the private key's file, and the public key as one line."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = place / "key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "stacklab build", "-f", private])
    return private, private.with_suffix(".pub").read_text(encoding="utf-8").strip()


def cloud_drive(path: Path, key: str) -> Path:
    """A filesystem labelled CIDATA, for cloud-init: root gets `key`."""
    user = {"name": "root", "lock_passwd": True, "ssh_authorized_keys": [key]}
    # JSON is YAML too.
    data = {"disable_root": False, "ssh_pwauth": False, "users": [user]}
    content = path.with_suffix(".content")
    files.write(content / "user-data", f"#cloud-config\n{json.dumps(data)}\n")
    files.write(content / "meta-data", "instance-id: stacklab-build\nlocal-hostname: build\n")
    run(["mkfs.fat", "-n", "CIDATA", "-C", path, str(_KIBIBYTES)])
    run(["mcopy", "-i", path, *sorted(content.iterdir()), "::"])
    return path


def seed_disc(path: Path, key: str) -> Path:
    """A disc labelled STACKLAB, for stacklab-seed: root gets `key`, the network its address by DHCP."""
    content = path.with_suffix(".content")
    content.mkdir()
    tar = _tar(
        {
            "etc/NetworkManager/system-connections/build.nmconnection": (_NETWORK_MANAGER, 0o600),
            "etc/hostname": ("build\n", 0o644),
            "etc/resolv.conf": (_NAME_SERVER, 0o644),
            "etc/systemd/network/05-build.network": (_NETWORKD, 0o644),
            "root/.ssh/authorized_keys": (key + "\n", 0o600),
        }
    )
    (content / "seed.tar").write_bytes(tar)
    files.write(content / "nics", "")
    files.write(content / "id", hashlib.sha256(tar).hexdigest() + "\n")
    run(["xorriso", "-as", "mkisofs", "-quiet", "-V", "STACKLAB", "-R", "-o", path, content])
    return path


def _tar(tree: dict[str, tuple[str, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        directories = {str(parent) for name in tree for parent in Path(name).parents} - {"."}
        for name in sorted(directories):
            member = tarfile.TarInfo(f"./{name}")
            member.type = tarfile.DIRTYPE
            member.mode = 0o700 if name.startswith("root") else 0o755
            tar.addfile(member)
        for name, (text, mode) in sorted(tree.items()):
            member = tarfile.TarInfo(f"./{name}")
            member.size, member.mode = len(text.encode()), mode
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()
