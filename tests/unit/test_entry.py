"""scripts/stacklab in a copy of its own, between fake programs that write down how they were called."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from invoke import Context

from stacklab.tasks import tests
from stacklab.tasks.common import edge

ROOT = Path(__file__).parents[2]
DEBIAN = {
    *("vagrant", "vagrant-lxc", "lxc", "sudo", "mmdebstrap", "debootstrap", "debian-archive-keyring"),
    *("qemu-utils", "mtools"),
    *(
        "dosfstools",
        "syslinux",
        "syslinux-common",
        "rsync",
        "xorriso",
        "zstd",
        "cpio",
        "ethtool",
        "iproute2",
        "procps",
    ),
    *(
        "util-linux",
        "fdisk",
        "openssh-client",
        "iputils-ping",
        "netcat-openbsd",
        "python3-venv",
        "patch",
        "git",
        "gpgv",
    ),
}

RECORD = 'printf "%s\\n" "${0##*/} $*" >>"$FAKE/calls"\n'
FAKES = {
    "dpkg-query": 'sed "s/^/ii  /" "$FAKE/installed"; exit 1',
    "apt-get": """case "$*" in *" install "*)
    [ ! -e "$FAKE/apt-fails" ] || { echo "E: Unable to fetch"; exit 100; }
    [ ! -e "$FAKE/root/etc/default/lxc-net" ] || echo "lxc-net first" >>"$FAKE/calls"
    for word in ${*##* --no-install-recommends}; do echo "$word" >>"$FAKE/installed"; done;;
esac""",
    "apt-cache": 'for word; do :; done; ! grep -qx "$word" "$FAKE/absent"',
    "rpm": 'for word; do :; done; grep -qx "$word" "$FAKE/installed"',
    "dnf": "",
    "id": 'cat "$FAKE/uid"',
    "sudo": """while [ $# -gt 0 ]; do case $1 in -*) shift;; *) break;; esac; done
exec "$@" """,
    "python3.12": """case "$1 $2" in
"-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
"-m pip") [ ! -e "$FAKE/pip-fails" ] || { echo "ERROR: no matching distribution"; exit 1; }
    [ ! -e "$FAKE/pip-hangs" ] || sleep 60
    # What is there it leaves alone.
    [ -e "${0%/*}/invoke" ] || { cat "$FAKE/invoke"; echo "# $PWD/.venv/bin/python"; } >"${0%/*}/invoke"
    chmod +x "${0%/*}/invoke" ;;
esac""",
}
INVOKE = """#!/bin/sh
[ "$1" != --search-root ] || { echo "$2" >"$FAKE/search-root"; shift 2; }
printf 'invoke %s\\n' "$*" >>"$FAKE/calls"
pwd >"$FAKE/cwd"
printf '%s\\n' "${OS_CLIENT_CONFIG_FILE:-}" "${OS_CLIENT_SECURE_FILE:-}" >"$FAKE/clouds"
umask >"$FAKE/umask"
exit ${FAKE_CODE:-0}
"""


@dataclass
class Checkout:
    """A copy of the entry in a directory of its own, and the fake machine around it."""

    top: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def stamp(self) -> Path:
        return self.top / "lab/.venv/stacklab-stamp"

    def state(self, name: str, text: str = "") -> None:
        (self.top / "fake" / name).write_text(text)

    def start(self, *args: str, script: Path | None = None, cwd: Path | None = None) -> subprocess.Popen[str]:
        fake = self.top / "fake"
        env = {**os.environ, "FAKE": str(fake), "STACKLAB_HOST_ROOT": str(fake / "root"), **self.env}
        env["PATH"] = f"{fake}/bin:{env['PATH']}"
        return subprocess.Popen(
            [script or self.top / "lab/scripts/stacklab", *args],
            cwd=cwd or self.top,
            env=env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )

    def run(
        self, *args: str, code: int = 0, script: Path | None = None, cwd: Path | None = None
    ) -> tuple[str, list[str]]:
        """What it printed, and the calls of the fakes."""
        calls = self.top / "fake/calls"
        calls.write_text("")
        process = self.start(*args, script=script, cwd=cwd)
        output = process.communicate(timeout=30)[0]
        assert process.returncode == code, output
        return output, calls.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    for name in [name for name in os.environ if name.startswith(("STACKLAB_", "INVOKE_", "OS_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    fakes = tmp_path / "fake/bin"
    fakes.mkdir(parents=True)
    for name, body in FAKES.items():
        (fakes / name).write_text("#!/bin/sh\n" + RECORD + body + "\n")
    for name in ("python3.13", "python3.11", "python3", "vagrant", "lxc-start", "mmdebstrap"):
        (fakes / name).write_text("#!/bin/sh\nexit 1\n")
    (fakes / "vagrant").unlink()
    (tmp_path / "fake/invoke").write_text(INVOKE)
    for path in (*fakes.iterdir(), tmp_path / "fake/invoke"):
        path.chmod(0o755)
    (tmp_path / "fake/root/etc/default").mkdir(parents=True)
    (tmp_path / "lab/scripts").mkdir(parents=True)
    shutil.copy2(ROOT / "scripts/stacklab", tmp_path / "lab/scripts/stacklab")
    shutil.copy2(ROOT / "pyproject.toml", tmp_path / "lab/pyproject.toml")
    made = Checkout(tmp_path)
    made.state("uid", "0\n")
    made.state("installed")
    made.state("absent")
    made.state("root/etc/os-release", 'ID=debian\nVERSION_ID="12"\n')
    return made


def installed(calls: list[str]) -> set[str]:
    for call in calls:
        if call.startswith("apt-get") and " install " in call:
            return set(call.split(" --no-install-recommends ")[1].split())
    return set()


def without_vagrant(packages: set[str]) -> set[str]:
    """`vagrant` also counts as there when the machine that runs the tests has it on PATH."""
    return packages - {"vagrant"}


def test_fresh_machine(checkout: Checkout) -> None:
    output, calls = checkout.run("up", "--topology", "two-node")
    assert without_vagrant(installed(calls)) == without_vagrant(DEBIAN)
    assert "installing packages: " in output
    assert " mmdebstrap " in output, "did not say what it installs"
    update = [n for n, call in enumerate(calls) if call.startswith("apt-get") and call.endswith(" update")]
    install = [n for n, call in enumerate(calls) if call.startswith("apt-get") and " install " in call]
    assert len(update) == len(install) == 1
    assert update < install
    assert "force-confold" in calls[install[0]]
    assert calls[-1] == "invoke up --topology two-node"
    assert calls[-2] == "python -m pip install --quiet --disable-pip-version-check -e ."


def test_only_what_is_missing(checkout: Checkout) -> None:
    checkout.state("installed", "\n".join(DEBIAN - {"zstd", "cpio"}) + "\n")
    assert installed(checkout.run("up")[1]) == {"zstd", "cpio"}


def test_nothing_missing_asks_for_nothing(checkout: Checkout) -> None:
    checkout.state("installed", "\n".join(DEBIAN) + "\n")
    output, calls = checkout.run("up")
    assert not [call for call in calls if call.startswith("apt-get")]
    assert "installing packages" not in output


def test_a_removed_package_with_its_configuration_left_is_missing(checkout: Checkout) -> None:
    checkout.state("installed", "\n".join(DEBIAN) + "\n")
    query = checkout.top / "fake/bin/dpkg-query"
    query.write_text(query.read_text().replace('s/^/ii  /"', 's/^/ii  /; s/^ii  zstd$/rc  zstd/"'))
    assert installed(checkout.run("up")[1]) == {"zstd"}


def test_tests_want_more(checkout: Checkout) -> None:
    checkout.state("installed", "\n".join(DEBIAN) + "\n")
    _, calls = checkout.run("test")
    expected = "createrepo-c fonts-dejavu-core gcc gpg gpg-agent librsvg2-bin packer"
    expected += " qemu-system-x86 rpm ruby shellcheck"
    expected += " chromium chromium-driver libvirt-clients libvirt-daemon-system vagrant-libvirt"
    # No systemd runs there: its own form of the package would bring it.
    assert installed(calls) == {*expected.split(), "libvirt-daemon-system-sysv"}
    assert calls[-2].endswith("-e .[test]")
    assert calls[-1] == "invoke test"


def test_from_the_second_time_on_nothing_is_looked_at(checkout: Checkout) -> None:
    checkout.run("up")
    output, calls = checkout.run("status", "--json")
    assert output == ""
    assert [call for call in calls if not call.startswith("id ")] == ["invoke status --json"]


def test_kind_of_the_environment(checkout: Checkout) -> None:
    checkout.run("up")
    _, calls = checkout.run("test")
    assert any(call.endswith("-e .[test]") for call in calls)
    assert not [call for call in calls if "-m venv" in call], "made .venv again for nothing"
    for task in ("up", "test"):
        assert not [call for call in checkout.run(task)[1] if "pip" in call]


@pytest.mark.parametrize("file", ["pyproject.toml", "scripts/stacklab"])
def test_changed_inputs_install_again(checkout: Checkout, file: str) -> None:
    checkout.run("up")
    with (checkout.top / "lab" / file).open("a") as handle:
        handle.write("\n# changed\n")
    assert any("pip install" in call for call in checkout.run("up")[1])
    assert not [call for call in checkout.run("up")[1] if "pip" in call]


def test_moved_checkout_installs_again(checkout: Checkout) -> None:
    checkout.run("up")
    (checkout.top / "lab").rename(checkout.top / "moved")
    _, calls = checkout.run("up", script=checkout.top / "moved/scripts/stacklab")
    assert any("pip install" in call for call in calls)
    # Programs in .venv begin with the path of its Python.
    assert str(checkout.top / "moved/.venv/") in (checkout.top / "moved/.venv/bin/invoke").read_text()
    assert calls[-1] == "invoke up"


def test_a_hardened_umask_is_not_the_environments(checkout: Checkout) -> None:
    before = os.umask(0o077)
    try:
        checkout.run("up")
    finally:
        os.umask(before)
    assert (checkout.top / "fake/umask").read_text().strip() in ("022", "0022")
    assert (checkout.top / "lab/.venv/bin").stat().st_mode & 0o777 == 0o755


def test_a_hardened_umask_is_not_a_tasks() -> None:
    """Bare `invoke` comes by no script."""
    seen: list[int] = []

    @edge
    def look(c: Context) -> None:
        seen.append(os.umask(0o022))

    before = os.umask(0o077)
    try:
        look(Context())
    finally:
        os.umask(before)
    assert seen == [0o022]


def test_white_space_in_a_path(checkout: Checkout) -> None:
    (checkout.top / "lab").rename(checkout.top / "my lab")
    output, calls = checkout.run("up", code=1, script=checkout.top / "my lab/scripts/stacklab")
    assert f"'{checkout.top}/my lab' has white space" in output
    assert [call for call in calls if not call.startswith("id ")] == []
    (checkout.top / "my lab").rename(checkout.top / "lab")
    checkout.env["XDG_CACHE_HOME"] = "/var/my cache"
    assert "'/var/my cache' has white space" in checkout.run("up", code=1)[0]
    # With sudo it is root's.
    del checkout.env["XDG_CACHE_HOME"]
    checkout.env["HOME"] = "/home/some one"
    checkout.run("up", code=1)
    checkout.state("uid", "1000\n")
    checkout.run("up")


def test_environment_whose_python_is_gone_is_made_again(checkout: Checkout) -> None:
    checkout.run("up")
    (checkout.top / "lab/.venv/bin/python").unlink()
    (checkout.top / "lab/.venv/old").touch()
    _, calls = checkout.run("up")
    assert any("-m venv" in call for call in calls)
    assert not (checkout.top / "lab/.venv/old").exists()


def test_failed_install_leaves_no_stamp_and_shows_the_log(checkout: Checkout) -> None:
    checkout.state("pip-fails")
    output, calls = checkout.run("up", code=1)
    assert not checkout.stamp.exists()
    assert "no matching distribution" in output
    assert f"full log: {checkout.top}/lab/.stacklab/setup.log" in output
    assert not [call for call in calls if call.startswith("invoke")]
    (checkout.top / "fake/pip-fails").unlink()
    _, calls = checkout.run("up")
    assert any("-m venv" in call for call in calls), "went on with half an environment"
    assert calls[-1] == "invoke up"


def test_failed_second_install_leaves_no_stamp(checkout: Checkout) -> None:
    checkout.run("up")
    checkout.state("pip-fails")
    checkout.run("test", code=1)
    assert not checkout.stamp.exists()


def test_killed_install_leaves_no_stamp(checkout: Checkout) -> None:
    checkout.state("pip-hangs")
    (checkout.top / "fake/calls").write_text("")
    process = checkout.start("up")
    deadline = time.monotonic() + 20
    while "pip install" not in (checkout.top / "fake/calls").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    assert not checkout.stamp.exists()
    (checkout.top / "fake/pip-hangs").unlink()
    assert any("-m venv" in call for call in checkout.run("up")[1])


def test_failed_packages_stop_it(checkout: Checkout) -> None:
    checkout.state("apt-fails")
    output, calls = checkout.run("up", code=1)
    assert "E: Unable to fetch" in output
    assert "setup.log" in output
    assert not [call for call in calls if call.startswith(("python", "invoke"))]


def test_lxc_bridge_is_off_before_lxc_comes(checkout: Checkout) -> None:
    calls = checkout.run("up")[1]
    assert "lxc-net first" in calls
    assert (checkout.top / "fake/root/etc/default/lxc-net").read_text() == 'USE_LXC_BRIDGE="false"\n'


def test_lxc_configuration_that_is_there_stays(checkout: Checkout) -> None:
    checkout.state("root/etc/default/lxc-net", "mine\n")
    checkout.run("up")
    assert (checkout.top / "fake/root/etc/default/lxc-net").read_text() == "mine\n"


@pytest.mark.parametrize(
    "release", ["ID=debian\nVERSION_ID=11\n", 'ID=ubuntu\nVERSION_ID="22.04"\n', "ID=arch\n", "ID=alpine\n"]
)
def test_unsupported_distribution(checkout: Checkout, release: str) -> None:
    checkout.state("root/etc/os-release", release)
    output, calls = checkout.run("up", code=1)
    assert "is not supported: Debian 12+, Ubuntu 24.04+ or EL 9+" in output
    assert {call.split()[0] for call in calls} <= {"id"}
    assert not (checkout.top / "lab/.venv").exists()


def test_packages_left_to_the_user(checkout: Checkout) -> None:
    checkout.state("root/etc/os-release", "ID=arch\n")
    checkout.env["STACKLAB_SKIP_PACKAGES"] = "1"
    _, calls = checkout.run("up")
    assert calls[-1] == "invoke up"
    assert not [call for call in calls if "apt" in call or "dpkg" in call]


@pytest.mark.parametrize(
    "release", ["ID=debian\n", 'ID="debian"\nVERSION_ID="13"\n', 'ID=ubuntu\nVERSION_ID="24.04"\n']
)
def test_supported_debians(checkout: Checkout, release: str) -> None:
    checkout.state("root/etc/os-release", release)
    assert checkout.run("up")[1][-1] == "invoke up"


def test_ubuntu_without_the_plugin_says_what_to_do(checkout: Checkout) -> None:
    checkout.state("root/etc/os-release", 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n')
    checkout.state("absent", "vagrant-lxc\n")
    output, calls = checkout.run("doctor")
    assert "vagrant-lxc" not in installed(calls)
    assert "lxc" in installed(calls)
    assert "no package for: vagrant-lxc" in output
    assert "vagrant plugin install vagrant-lxc" in output
    assert "does not work here" in output


def test_el(checkout: Checkout) -> None:
    checkout.state("root/etc/os-release", 'ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.5"\n')
    checkout.state("installed", "sudo\nrsync\n")
    output, calls = checkout.run("up")
    words = next(call for call in calls if call.startswith("dnf")).split()
    assert {"python3.12", "qemu-img", "openssh-clients"} <= set(words)
    assert "rsync" not in words
    assert "vagrant plugin install vagrant-lxc" in output
    assert not [call for call in calls if call.startswith(("apt", "dpkg"))]


def test_not_root(checkout: Checkout) -> None:
    checkout.state("uid", "1000\n")
    checkout.env["STACKLAB_COLOUR"] = "blue"
    _, calls = checkout.run("up", "--dry-run")
    proxies = "http_proxy,https_proxy,no_proxy,HTTP_PROXY,HTTPS_PROXY,NO_PROXY"
    apt = f"sudo --preserve-env={proxies} -- env DEBIAN_FRONTEND=noninteractive apt-get"
    assert any(call.startswith(apt) for call in calls)
    task = calls[-2]
    assert task.startswith("sudo --preserve-env=STACKLAB_COLOUR,")
    assert task.endswith(
        f" {checkout.top}/lab/.venv/bin/invoke --search-root {checkout.top}/lab up --dry-run"
    )
    assert (checkout.top / "fake/cwd").read_text().strip() == str(checkout.top)
    assert not [call for call in calls if call.startswith("sudo") and "pip" in call], ".venv is the user's"
    _, calls = checkout.run("--version")
    assert not [call for call in calls if call.startswith("sudo")]


def preserved(calls: list[str]) -> set[str]:
    """The variables that go along to the task."""
    [call] = [call for call in calls if call.startswith("sudo ") and "/.venv/bin/invoke " in call]
    return set(call.split()[1].removeprefix("--preserve-env=").split(","))


def test_not_root_the_cloud_is_the_users(checkout: Checkout) -> None:
    checkout.state("uid", "1000\n")
    checkout.env["OS_AUTH_URL"] = "http://127.0.0.1:9/v3"
    _, calls = checkout.run("images.list", "--cloud", "mine")
    assert {name for name in preserved(calls) if name.startswith("OS_")} == {"OS_AUTH_URL"}
    for place in ("home/.config", "config"):
        own = checkout.top / place / "openstack"
        own.mkdir(parents=True)
        if place == "config":
            checkout.env["XDG_CONFIG_HOME"] = str(own.parent)
        for name in ("clouds.yaml", "secure.yaml"):
            (own / name).touch()
        _, calls = checkout.run("images.list", "--cloud", "mine")
        assert preserved(calls) >= {"OS_AUTH_URL", "OS_CLIENT_CONFIG_FILE", "OS_CLIENT_SECURE_FILE"}
        found = (checkout.top / "fake/clouds").read_text().splitlines()
        assert found == [str(own / "clouds.yaml"), str(own / "secure.yaml")]
    # The SDK looks into the directory where it runs first.
    (checkout.top / "clouds.yaml").touch()
    checkout.env["OS_CLIENT_SECURE_FILE"] = "chosen"
    checkout.run("images.list", "--cloud", "mine")
    assert (checkout.top / "fake/clouds").read_text().splitlines() == ["", "chosen"]


def test_without_a_task_it_lists_them(checkout: Checkout) -> None:
    assert checkout.run()[1][-1] == "invoke --list"


def test_through_a_symlink_from_anywhere(checkout: Checkout) -> None:
    link = checkout.top / "link"
    link.symlink_to("lab/scripts/stacklab")
    elsewhere = checkout.top / "else where"
    elsewhere.mkdir()
    _, calls = checkout.run("up", "--topology", "my.yaml", script=link, cwd=elsewhere)
    assert calls[-1] == "invoke up --topology my.yaml"
    assert (checkout.top / "fake/search-root").read_text().strip() == str(checkout.top / "lab")
    # A path like my.yaml is where the user is.
    assert (checkout.top / "fake/cwd").read_text().strip() == str(elsewhere)


def test_the_tests_run_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their directories, and the settings of pytest, are there."""
    places: list[Path] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "execv", lambda *argv: places.append(Path.cwd()))
    tests.test.body(Context())
    assert places == [ROOT]


def test_the_exit_code_is_the_tasks(checkout: Checkout) -> None:
    checkout.env["FAKE_CODE"] = "3"
    checkout.run("up", code=3)


def test_no_python_is_told(checkout: Checkout) -> None:
    (checkout.top / "fake/bin/python3.12").write_text("#!/bin/sh\nexit 1\n")
    output, _ = checkout.run("up", code=1)
    assert "no Python 3.11 or later with venv and ensurepip" in output


def test_two_at_once_install_once(checkout: Checkout) -> None:
    calls = checkout.top / "fake/calls"
    calls.write_text("")
    both = [checkout.start("up"), checkout.start("status")]
    assert [process.wait(timeout=30) for process in both] == [0, 0]
    for process in both:
        process.communicate()
    lines = calls.read_text().splitlines()
    assert len([line for line in lines if "pip install" in line]) == 1
    assert {"invoke up", "invoke status"} <= set(lines)
