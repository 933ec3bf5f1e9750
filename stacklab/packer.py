"""The builder packer: golden images made in a machine that runs, from an installer or a disk.

The machine is provisioned by the same elements that dib builds from (see `hooks`), boots what was
installed there, and is checked against the same contract.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stacklab import (
    access,
    base,
    dib,
    diskfiles,
    distributions,
    download,
    files,
    goldendib,
    hooks,
    kvm,
    releases,
    ui,
)
from stacklab import inputs as sources
from stacklab.base import Spec
from stacklab.errors import CommandFailed, InvalidInput, LabError, Problem
from stacklab.inputs import Fetched, Input
from stacklab.run import run

TEMPLATES = files.PROJECT / "packer"
PROVISION = files.PROJECT / "scripts" / "provision"
BUILD_SECONDS = 4 * 3600
_DISK = 12 << 10  # MiB
# The installer's boot menu, in EL 7 as in EL 9: the entry that does not check the medium.
_BOOT_COMMAND = ("<up><tab> inst.ks=http://{{ .HTTPIP }}:{{ .HTTPPort }}/ks.cfg<enter>",)
# By their programs. QEMU first: only it starts from a disk, too.
_MACHINES = ((kvm.QEMU, "qemu"), ("VBoxManage", "virtualbox-iso"), ("vmrun", "vmware-iso"))


def inputs(spec: Spec) -> dict[str, Any]:
    """What of this builder decides an image's content."""
    return {
        "elements": hooks.digests(spec.elements),
        "source": _named(spec),
        "templates": files.tree_digest(TEMPLATES),
        "provision": files.tree_digest(PROVISION),
        "environment": goldendib.fixed_environment(spec),
    }


def commands(spec: Spec, out: Path) -> list[list[str]]:
    """The commands of the build; its variables are in a file."""
    found = []
    if _version() >= (1, 7):
        found.append(["packer", "init", str(TEMPLATES / "init")])
    only = f"-only={machine()}.golden"
    variables = f"-var-file={out.with_name('golden.pkrvars.json')}"
    found.append(["packer", "build", "-color=false", only, variables, str(TEMPLATES / "golden")])
    return found


def make(spec: Spec, work: Path, log: Path) -> dict[str, Any]:
    """Build in `work` and check the result; see `base`."""
    source = _fetch(spec)
    place = work / "tmp"  # `base` removes it
    place.mkdir()
    if not _is_installer(source):
        _suits(spec, source, place, log)
    out = place / "out"
    files.write_json(place / "golden.pkrvars.json", variables(spec, source, place, log))
    configuration = files.cache_dir() / "packer"
    environment = {
        "CHECKPOINT_DISABLE": "1",
        "PACKER_CACHE_DIR": str(place / "cache"),
        "PACKER_CONFIG_DIR": str(configuration),
        "PACKER_PLUGIN_PATH": str(configuration / "plugins"),
    }
    configuration.mkdir(parents=True, exist_ok=True)
    try:
        _run(commands(spec, out), environment, place, log)
    except BaseException:
        _keep_console(place / "console.log", log)
        raise
    raw = work / "disk.raw"
    run(["qemu-img", "convert", "-O", "raw", _result(out), raw], log=log, timeout=1800)
    diskfiles.forget_deleted(raw, log)
    about = base.take_disk(raw, work, spec.provider, log, base.hosts_of_build(spec))
    return {**about, "source": {"digest": source.digest, "proof": source.proof}}


def _run(argvs: list[list[str]], environment: dict[str, str], place: Path, log: Path) -> None:
    # A short path: Packer's plugins talk through sockets there, whose names have 108 bytes.
    with tempfile.TemporaryDirectory(prefix="packer-") as scratch:
        for argv in argvs:
            run(
                argv,
                log=log,
                env={**environment, "TMPDIR": scratch},
                cwd=place,  # where a crash leaves its log
                timeout=BUILD_SECONDS,
                each_line=_progress,
                hint="the first error is the one to look at; `build-base` starts the build anew",
            )


def _keep_console(console: Path, log: Path) -> None:
    """Add to the log what the machine said last: why it did not answer, as a rule."""
    if console.is_file():
        lines = console.read_text(encoding="utf-8", errors="replace").splitlines()[-200:]
        with log.open("a", encoding="utf-8") as record:
            record.write("the machine's console, its last lines:\n")
            record.writelines(f"    {line}\n" for line in lines)


def variables(spec: Spec, source: Fetched, place: Path, log: Path) -> dict[str, Any]:
    """What packer/golden is told; files that it names are written to `place`."""
    row = distributions.distribution(spec.distribution)
    key, public = access.make_key(place / "access")
    environment = {
        **goldendib.fixed_environment(spec),
        **goldendib.image_sources(spec),
        "DIB_INIT_SYSTEM": "systemd",
        "DIB_MANIFEST_IMAGE_DIR": "/etc/dib-manifests",
        "DISTRO_NAME": row.name.split("-")[0],
    }
    if row.family == "debian":
        environment["STACKLAB_PACKSTACK_WHEEL"] = str(goldendib.wheel(releases.release(spec.release), log))
    system = (row.version, environment["DISTRO_NAME"], "redhat" if row.family == "el" else row.family)
    archive = hooks.archive(spec.elements, environment, system, place, log, _have(spec, source))
    works, why = kvm.usable()
    ui.say("the machine runs with KVM" if works else f"the machine is emulated, which takes longer: {why}")
    found = {
        "source": str(source.path),
        "checksum": source.digest,
        "console": str(place / "console.log"),
        "output": str(place / "out"),
        "key": str(key),
        "hooks": str(archive),
        "provision": str(PROVISION),
        "environment": [
            f"{name}={value}" for name, value in {**environment, **_network(row.version, spec.mirror)}.items()
        ],
        "accelerator": "kvm" if works else "tcg",
        "cpu": "host" if works else "max",
        "disk": _DISK,
    }
    if _is_installer(source):
        installer = sources.find(spec.distribution, "iso")
        text = kickstart(installer, public, os.environ.get("http_proxy", ""), spec.mirror)
        files.write(place / "http" / "ks.cfg", text)
        return {
            **found,
            "boot_command": _BOOT_COMMAND,
            "http_directory": str(place / "http"),
            "disk_image": False,
        }
    told = run(["qemu-img", "info", "--output=json", source.path], log=log, merge_stderr=False).output
    size = int(json.loads(told)["virtual-size"]) >> 20
    return {**found, "disk_image": True, "disk": max(size, _DISK), "drives": _drives(place, public, log)}


def kickstart(installer: Input, key: str, proxy: str = "", mirror: str = "") -> str:
    """What an installer is told: whose key gets in, and where it has its packages from."""
    text = (TEMPLATES / "kickstart" / f"{installer.kickstart}.ks").read_text(encoding="utf-8")
    via = f" --proxy={proxy}" if proxy else ""
    (first, *others) = installer.trees(mirror or download.mirror()).items() or [("", "")]
    # An installer that carries no packages fetches them.
    lines = [f"url --url={first[1]}{via}" if first[1] else "cdrom"]
    lines += [f"repo --name={name} --baseurl={url}{via}" for name, url in others]
    return text.replace("@SOURCE@", "\n".join(lines)).replace("@SSH_KEY@", key)


def machine() -> str:
    """The kind of machine that builds run in, as packer/golden calls it."""
    found = (kind for program, kind in _MACHINES if shutil.which(program))
    return next(found, "qemu")


def _drives(place: Path, key: str, log: Path) -> list[str]:
    """All drives of a machine that starts from a disk: its own, and those that let the build in."""
    cloud = access.cloud_drive(place / "cidata.img", key)
    seed = access.seed(place / "seed.iso", key, log)
    options = "if=virtio,cache=unsafe,discard=unmap,detect-zeroes=unmap,format=qcow2"
    return [
        f"file={place / 'out' / 'golden.qcow2'},{options}",
        f"file={cloud},if=virtio,format=raw,readonly=on",
        f"file={seed},media=cdrom",
    ]


def _wanted(spec: Spec) -> Input | Path:
    """What to start from: the user's own file, or an input of the table."""
    if spec.source not in ("", "iso", "cloud"):
        return Path(spec.source)
    default = "iso" if distributions.distribution(spec.distribution).family == "el" else "cloud"
    return sources.find(spec.distribution, spec.source or default)


def _named(spec: Spec) -> Any:
    wanted = _wanted(spec)
    if isinstance(wanted, Path):
        return sources.given(wanted).digest
    return [wanted.name, wanted.sha256]


def _fetch(spec: Spec) -> Fetched:
    wanted = _wanted(spec)
    source = sources.given(wanted) if isinstance(wanted, Path) else sources.fetch(wanted, spec.mirror)
    if not _is_installer(source) and machine() != "qemu":
        message = f"{source.path.name} is a disk, and only QEMU starts from one: install QEMU, or take an ISO"
        raise InvalidInput([Problem("", "source", message)])
    return source


def _suits(spec: Spec, source: Fetched, place: Path, log: Path) -> None:
    """Raise InvalidInput unless the disk is of the kind that can be checked in the end."""
    found = diskfiles.filesystems(source.path, place, log)
    if found == ["ext4"]:
        return
    count = "1 partition" if len(found) == 1 else f"{len(found)} partitions"
    has = f"{count} ({', '.join(found)})" if found else "no table of partitions"
    installer = ", or the installer (iso)" if "iso" in sources.kinds(spec.distribution) else ""
    right = f"a golden image has one, of ext4: take such a disk, as golden images are{installer}"
    raise InvalidInput([Problem("", "source", f"{source.path.name} has {has}; {right}")])


def _is_installer(source: Fetched) -> bool:
    return source.path.suffix == ".iso"


def _have(spec: Spec, source: Fetched) -> set[str]:
    """The elements that a disk has already, being a golden image of ours."""
    about = files.read_json(source.path.with_name("metadata.json")) or {}
    if source.digest != f"sha256:{about.get('sha256')}":
        return set()
    known: dict[str, str] = about["inputs"]["elements"]
    wanted = hooks.digests(spec.elements)
    changed = sorted(name for name in wanted if name in known and known[name] not in ("dib", wanted[name]))
    if changed:
        raise LabError(
            f"{about['name']} was built before {', '.join(changed)} changed",
            hint="an element is not laid over an older one: build that image anew first",
        )
    return set(hooks.elements(list(known)))


def _network(codename: str, mirror: str = "") -> dict[str, str]:
    """What the machine needs to reach what the build host reaches; nothing of it stays in the image."""
    found = {
        name: os.environ[name] for name in ("http_proxy", "https_proxy", "no_proxy") if os.environ.get(name)
    }
    for name in ("http_proxy", "https_proxy"):
        if name in found:
            # The host itself has this address in a user network.
            found[name] = re.sub(
                r"//((?:[^@/]*@)?)(localhost|127\.0\.0\.1)\b", r"//\g<1>10.0.2.2", found[name]
            )
    mirror = mirror or download.mirror()
    if mirror:
        found["STACKLAB_MIRROR"] = mirror
    archive, security = (mirror, f"{mirror}-security") if mirror else dib.apt_mirrors(codename)
    if sources := dib.apt_sources(codename, (archive, security)):
        found["STACKLAB_SOURCES"] = sources
    hosts = {urlsplit(url).hostname for url in (archive, security, found.get("http_proxy", ""))} - {None, ""}
    # What only this host's own table says, no name server would tell the machine.
    table = [
        line.split("#")[0].split() for line in Path("/etc/hosts").read_text(encoding="utf-8").splitlines()
    ]
    lines = [f"{words[0]} {name}" for words in table for name in words[1:] if name in hosts]
    return {**found, "STACKLAB_HOSTS": "|".join(lines)} if lines else found


def _result(out: Path) -> Path:
    """The disk that Packer left."""
    found = sorted(path for kind in ("*.qcow2", "*.vmdk") for path in out.glob(kind))
    if len(found) != 1:
        raise CommandFailed("Packer ended well but left no disk", hint="see the build log")
    return found[0]


def _version() -> tuple[int, ...]:
    said = run(
        ["packer", "version"], timeout=60, hint="install Packer, Debian's package packer or HashiCorp's own"
    ).output
    match = re.search(r"Packer v(\d+)\.(\d+)", said)
    if not match:
        raise CommandFailed(f"packer does not say its version, but: {said.strip()[:200]}")
    return tuple(int(part) for part in match.groups())


def _progress(line: str) -> None:
    if found := re.match(r"(?:==> | {4})[\w.-]+: (.+)", line):
        ui.detail(found[1][:100])
