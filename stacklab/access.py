"""How a build gets into the machine that it makes: a key of its own, never a password.

An installer puts the key there itself (packer/kickstart). A disk finds it on drives beside it:
cloud images by cloud-init (NoCloud), golden images of our own by stacklab-seed.
"""

from __future__ import annotations

import json
from pathlib import Path

from stacklab import files, seed_disc
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


def seed(path: Path, key: str, log: Path) -> Path:
    """A disc for stacklab-seed: root gets `key`, the network its address by DHCP."""
    tree = path.with_suffix(".tree")
    for name, (text, mode) in {
        "etc/NetworkManager/system-connections/build.nmconnection": (_NETWORK_MANAGER, 0o600),
        "etc/hostname": ("build\n", 0o644),
        "etc/resolv.conf": (_NAME_SERVER, 0o644),
        "etc/systemd/network/05-build.network": (_NETWORKD, 0o644),
        "root/.ssh/authorized_keys": (f"{key}\n", 0o600),
    }.items():
        files.write(tree / name, text, mode)
    for private in ("root", "root/.ssh"):
        (tree / private).chmod(0o700)
    seed_disc.make(tree, "", path, log)
    return path
