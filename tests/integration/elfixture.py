"""EL without a mirror: tiny RPMs, their repositories on 127.0.0.1, and a rootfs with EL's identity.

The tree is Debian's (a shell, systemd, dnf, rpm, GRUB) with EL's os-release, package database
and names; the kernel and chronyd are Debian's inside RPMs. dib's own EL elements and ours run on
it unmodified. It proves nothing about real EL packages, SELinux, dracut or EL's GRUB.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from stacklab import distributions, files, releases
from stacklab.distributions import Distribution

HERE = Path(__file__).parent / "el"
RUNTIME = HERE / "container-runtime"
EPOCH = "1700000000"
TOOLS = ("rpmbuild", "createrepo_c", "mmdebstrap")

# Below the mirror, as on a real one.
REPOSITORIES = {name: f"pub/rocky/9/{name}/x86_64/os" for name in ("BaseOS", "AppStream", "CRB", "extras")}
OPENSTACK = "SIGs/9-stream/cloud/x86_64/openstack-epoxy"

# What dib's elements and ours ask for and the rootfs has, or does not need.
STUBS = (
    *("audit", "ca-certificates", "cloud-utils-growpart", "cronie", "curl", "dnf-plugins-core", "dracut"),
    *("dracut-config-generic", "e2fsprogs", "efibootmgr", "ethtool", "file", "gettext", "git", "git-core"),
    *(
        "grub2",
        "grub2-tools",
        "grubby",
        "hostname",
        "initscripts",
        "iproute",
        "iputils",
        "iscsi-initiator-utils",
        "less",
        "lsof",
    ),
    *("man-pages", "NetworkManager", "openssh-clients", "openstack-network-scripts", "openstack-selinux"),
    *("parted", "passwd", "policycoreutils-python-utils", "procps-ng", "python3-libselinux"),
    *("python3-policycoreutils", "qemu-guest-agent", "redhat-rpm-config", "rng-tools", "rsync", "rsyslog"),
    *("selinux-policy", "selinux-policy-targeted", "sudo", "tcpdump", "traceroute", "vim-minimal", "which"),
    *("yum-utils", "openssh", "zstd"),
)
ROOTFS = (
    *("ca-certificates", "cloud-guest-utils", "curl", "dbus", "dnf", "dnf-plugins-core", "e2fsprogs"),
    *("gdisk", "grub-common", "grub-pc-bin", "grub2-common", "initramfs-tools", "iproute2", "kmod"),
    *("locales", "network-manager", "openssh-server", "passwd", "procps", "python3", "python3-yaml"),
    *("rpm", "rsync", "sudo", "systemd-sysv", "udev", "zstd"),
)


class Fixture:
    """Repositories and rootfs in `place`; `repository` has each repository's directory by name."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.served = place / "served"
        self.repository = {name: self.served / path for name, path in REPOSITORIES.items()}
        self.repository["openstack"] = self.served / OPENSTACK
        self.log = place / "fixture.log"
        self.url = ""

    def make(self, url: str) -> None:
        """Everything, for a server whose address will be `url`. About 70 RPMs: two seconds."""
        self.url = url
        for path in self.repository.values():
            path.mkdir(parents=True)
        self.rpm("rocky-release", "BaseOS")
        self.rpm("stubs", "BaseOS", names=" ".join(STUBS))
        self.rpm("openssh-server", "BaseOS")
        self.rpm("chrony", "BaseOS", tree=str(self.deb("chrony")))
        self.kernel(2)
        self.rpm("centos-release-openstack", "extras", openstack="epoxy", url=f"{url}/{OPENSTACK}/")
        self.rpm("openstack-packstack", "openstack")
        self.index()

    def kernel(self, build: int, **defines: str) -> None:
        """A kernel of that release, into BaseOS; `index` afterwards."""
        self.rpm("kernel", "BaseOS", tree=str(self.deb(_kernel())), build=str(build), **defines)

    def index(self) -> None:
        """The metadata of all repositories, after a change of their packages."""
        for path in self.repository.values():
            self._run(["createrepo_c", "--quiet", path])

    def rpm(self, spec: str, repository: str, **defines: str) -> None:
        """Build el/SPEC.spec into a repository."""
        top = self.place / "rpmbuild"
        macros = f"/usr/lib/rpm/macros:{HERE / 'macros'}"
        words = [f"_topdir {top}", f"_rpmdir {self.repository[repository]}"]
        words += [f"{name} {value}" for name, value in defines.items()]
        self._run(
            [
                *("rpmbuild", "-bb", "--quiet", "--load", macros.split(":")[1]),
                *(part for word in words for part in ("--define", word)),
                HERE / f"{spec}.spec",
            ]
        )

    def deb(self, package: str) -> Path:
        """The contents of a Debian package, from the host's own mirror."""
        tree = self.place / "deb" / package
        if not tree.is_dir():
            tree.mkdir(parents=True)
            self._run(["apt-get", "download", package], cwd=tree.parent)
            (archive,) = tree.parent.glob(f"{package}_*.deb")
            self._run(["dpkg-deb", "--extract", archive, tree])
        return tree

    def rootfs(self) -> Path:
        """The archive that stands for the container; it takes a minute and is kept in the cache."""
        inputs = [ROOTFS, *((HERE / name).read_text() for name in ("rootfs-hook", "rocky-release.spec"))]
        kept = files.cache_dir() / "tests" / f"el-rootfs-{files.digest(inputs)[:12]}.tar"
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            partial = self.place / "rootfs.tar"
            (release,) = self.repository["BaseOS"].glob("rocky-release-*.rpm")
            self._run(
                [
                    *("mmdebstrap", "--variant=minbase", "--mode=root", "--skip=check/empty"),
                    f"--include={','.join(ROOTFS)}",
                    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")),
                    *("--customize-hook", str(HERE / "rootfs-hook"), "bookworm", partial),
                ],
                env={"STACKLAB_FIXTURE_RELEASE": str(release), "SOURCE_DATE_EPOCH": EPOCH},
            )
            shutil.move(partial, kept)
        return kept

    def environment(self) -> dict[str, str]:
        """What makes a build take this container in place of the real one."""
        return {
            "DIB_CONTAINERFILE_RUNTIME": str(RUNTIME),
            "STACKLAB_FIXTURE_ROOTFS": str(self.rootfs()),
        }

    def _run(
        self, argv: Sequence[str | Path], cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> None:
        with self.log.open("a") as log:
            log.write(f"$ {argv}\n")
            log.flush()
            done = subprocess.run(
                argv,
                cwd=cwd,
                env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )
        assert done.returncode == 0, self.log.read_text()[-3000:]


def _kernel() -> str:
    said = subprocess.run(
        ["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True, check=True
    ).stdout
    return next(word for word in said.split() if word.startswith("linux-image-6"))


class Handler(SimpleHTTPRequestHandler):
    """Serves the repositories, and keeps what was asked for on the server object."""

    def log_message(self, *words: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """Serve a file, or the error that a test wants for its path."""
        server = self.server
        assert isinstance(server, Server)
        server.asked.append(self.path)
        super().do_GET()


class Server(ThreadingHTTPServer):
    """On 127.0.0.1, on a port of its own; `asked` has the paths of all requests."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(directory)))

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_port}"


def row(server: Server) -> Distribution:
    """rocky-9, with the enabling package from the fixture."""
    where = f"{server.url}/{REPOSITORIES['extras']}"
    known = distributions.distribution("rocky-9")
    return dataclasses.replace(known, environment={"STACKLAB_ENABLING_REPOSITORY": where})


def release(server: Server) -> releases.Release:
    """epoxy, with its repository in the fixture."""
    url = f"{server.url}/{OPENSTACK}/"
    return dataclasses.replace(releases.release("epoxy"), repositories={"openstack-epoxy": url})


def mirror(server: Server) -> str:
    """Rocky's mirror, by another name than the OpenStack repository's, which stays in the image."""
    return f"http://localhost:{server.server_port}/pub/rocky"


@contextmanager
def serving(place: Path) -> Iterator[tuple[Fixture, Server]]:
    """A fixture that is made and served."""
    fixture = Fixture(place)
    fixture.served.mkdir(parents=True)
    with Server(fixture.served) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            fixture.make(server.url)
            yield fixture, server
        finally:
            server.shutdown()
            thread.join()
