"""The hooks of elements/ as an archive for a machine that runs, and what runs them there."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from stacklab import distributions, files, hooks
from stacklab.errors import LabError

PROJECT = files.PROJECT
DEBIAN = ("bookworm", "debian", "debian")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with elements of the test's own."""
    root = tmp_path / "project"
    (root / "elements").mkdir(parents=True)
    monkeypatch.setattr(files, "PROJECT", root)
    return root


def element(project: Path, name: str, **parts: str) -> Path:
    """Write an element; a part's name has __ for / and ends in _d for a directory of hooks."""
    place = project / "elements" / name
    place.mkdir(exist_ok=True)
    for part, text in parts.items():
        path = place / part.replace("__", "/").replace("_d/", ".d/")
        files.write(path, text, 0o755 if text.startswith("#!") else 0o644)
    return place


def contents(archive: Path, tmp_path: Path) -> dict[str, str]:
    target = tmp_path / "contents"
    with tarfile.open(archive) as tar:
        assert {(member.uid, member.uname) for member in tar.getmembers()} == {(0, "root")}
        tar.extractall(target, filter="tar")
    found = (path for path in target.rglob("*") if path.is_file())
    return {str(path.relative_to(target)): path.read_text(errors="replace") for path in found}


def test_what_an_element_has(project: Path, tmp_path: Path) -> None:
    element(
        project,
        "one",
        **{
            "install_d__10-one": "#!/bin/sh\n",
            "finalise_d__90-one": "#!/bin/sh\n",
            "root_d__10-one": "#!/bin/sh\nexit 1",
            "static__etc__one": "static\n",
            "environment_d__10-one": "export ONE=1\n",
            "element-deps": "two\nblock-device-mbr\npackage-installs\n",
            "extra-data_d__50-one": '#!/bin/sh\necho "$WORD" > "$TMP_HOOKS_PATH/carried"\n',
        },
    )
    element(project, "two", **{"bin__tool": "#!/bin/sh\n", "init-scripts__systemd__two.service": "[Unit]\n"})
    log = tmp_path / "log"
    archive = hooks.archive(["debian-minimal", "one"], {"WORD": "wheel"}, DEBIAN, tmp_path / "w", log)
    found = contents(archive, tmp_path)
    assert set(found) == {
        "install.d/10-one",
        "finalise.d/90-one",
        "static/etc/one",
        "environment.d/10-one",
        "bin/tool",
        "static/usr/lib/systemd/system/two.service",
        "carried",
        "lib/hooks",
        "lib/install-packages",
    }
    assert found["carried"] == "wheel\n"


def test_modes_are_those_that_git_knows(project: Path, tmp_path: Path) -> None:
    """The archive's static files are laid over / and /etc of a machine."""
    place = element(project, "one", **{"static__etc__one": "x", "install_d__10-one": "#!/bin/sh\n"})
    (place / "static/etc/link").symlink_to("one")
    for path in (place, *place.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o750)
    archive = hooks.archive(["one"], {}, DEBIAN, tmp_path / "w", tmp_path / "log")
    with tarfile.open(archive) as tar:
        modes = {member.name: member.mode for member in tar.getmembers() if not member.issym()}
    assert modes["./static"] == modes["./static/etc"] == modes["./install.d/10-one"] == modes["."] == 0o755
    assert modes["./static/etc/one"] == 0o644
    assert set(modes.values()) == {0o755, 0o644}


PACKAGES = """plain:
mapped:
none-here:
early:
  phase: pre-install.d
other:
  arch: arm64
gone:
  uninstall: True
"""
MAP = """{
"family": {"redhat": {"mapped": "of-redhat"}, "debian": {"none-here": ""}},
"distro": {"debian": {"mapped": "of-debian and-more"}},
"release": {"rocky": {"9": {"mapped": "of-rocky-9"}}}}
"""


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        (DEBIAN, ["plain", "of-debian", "and-more"]),
        (("9-stream", "centos", "redhat"), ["plain", "of-redhat", "none-here"]),
        (("9", "rocky", "redhat"), ["plain", "of-rocky-9", "none-here"]),
    ],
    ids=["distribution", "family", "release"],
)
def test_packages(system: tuple[str, str, str], expected: list[str], project: Path, tmp_path: Path) -> None:
    element(project, "one", **{"package-installs.yaml": PACKAGES, "pkg-map": MAP})
    found = contents(hooks.archive(["one"], {}, system, tmp_path / "w", tmp_path / "log"), tmp_path)
    assert found["packages/install.d"].split() == expected
    assert found["packages/pre-install.d"] == "early\n"


def test_what_one_element_says_of_a_release_holds_for_all(project: Path, tmp_path: Path) -> None:
    element(project, "one", **{"package-installs.yaml": "absent:\nthere:\n"})
    element(project, "two", **{"pkg-map": '{"release": {"centos": {"7": {"absent": ""}}}}'})
    for release, expected in (("7", ["there"]), ("9-stream", ["absent", "there"])):
        system = (release, "centos", "redhat")
        archive = hooks.archive(["one", "two"], {}, system, tmp_path / release, tmp_path / "log")
        assert contents(archive, tmp_path / release)["packages/install.d"].split() == expected


def test_of_what_is_there_only_the_last_phase_is_taken(project: Path, tmp_path: Path) -> None:
    parts = {"package-installs.yaml": "package:\n", "static__x": "x"}
    element(
        project, "old", **parts, **{"install_d__10-old": "#!/bin/sh\n", "finalise_d__90-old": "#!/bin/sh\n"}
    )
    element(project, "new", **{"install_d__10-new": "#!/bin/sh\n"})
    archive = hooks.archive(["old", "new"], {}, DEBIAN, tmp_path / "w", tmp_path / "log", have={"old"})
    names = {name for name in contents(archive, tmp_path) if not name.startswith("lib/")}
    assert names == {"finalise.d/90-old", "install.d/10-new"}


def test_two_hooks_of_one_name(project: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        element(project, name, **{"install_d__10-same": "#!/bin/sh\n"})
    with pytest.raises(LabError, match=r"10-same: another element has a hook of the same name"):
        hooks.archive(["one", "two"], {}, DEBIAN, tmp_path / "w", tmp_path / "log")


def test_a_digest_for_each_element(project: Path) -> None:
    element(project, "one", **{"element-deps": "two\n"})
    element(project, "two", **{"static__x": "x"})
    before = hooks.digests(["one"])
    assert set(before) == {"one", "two"}
    element(project, "two", **{"static__x": "y"})
    after = hooks.digests(["one"])
    assert before["one"] == after["one"] and before["two"] != after["two"]


def test_every_distributions_elements_can_be_taken(tmp_path: Path) -> None:
    wheel = tmp_path / "packstack.whl"
    wheel.touch()
    assert "centos-7" in distributions.names()
    for name in distributions.names():
        row = distributions.distribution(name)
        environment = {"STACKLAB_PACKSTACK_WHEEL": str(wheel), **row.environment}
        family = "redhat" if row.family == "el" else row.family
        for provider, extra in row.providers.items():
            if provider == "lxc":
                continue
            work = tmp_path / name / provider
            system = (row.version, name.split("-")[0], family)
            archive = hooks.archive([*row.elements, *extra], environment, system, work, tmp_path / "log")
            found = contents(archive, work)
            assert "stacklab-golden" in hooks.elements(row.elements)
            packages = " ".join(text for path, text in found.items() if path.startswith("packages/"))
            assert ("zstd" in packages.split()) is (name != "centos-7")
            assert "finalise.d/95-stacklab-manifest" in found
            for path in found:
                assert not path.startswith(("root.d", "block-device", "cleanup.d"))


def provision(tmp_path: Path, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a few lines with scripts/provision/hooks, at a place of the test's own."""
    library = (PROJECT / "scripts/provision/hooks").read_text().replace("/tmp/in_target.d", str(tmp_path))
    files.write(tmp_path / "library", library)
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'. "{tmp_path}/library"\n{script}'],
        env={"PATH": os.environ["PATH"], **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_hooks_run_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("20-b", "10-a", "30-c"):
        # a hook that reads its input must not eat the names of the others
        files.write(tmp_path / "install.d" / name, f'#!/bin/sh\ncat; echo "ran {name} $WORD"\n', 0o755)
    files.write(tmp_path / "install.d" / "README", "not a hook")
    files.write(tmp_path / "environment.d" / "10-word", "export WORD=${WORD:-default}\n")
    files.write(tmp_path / "packages" / "install.d", "one\ntwo\n")
    files.write(tmp_path / "lib" / "install-packages", '#!/bin/sh\necho "install $*"\n', 0o755)
    result = provision(tmp_path, "run_phase install.d", WORD="given")
    lines = [line for line in result.stdout.splitlines() if not line.startswith("provision:")]
    assert lines == ["install one two", "ran 10-a given", "ran 20-b given", "ran 30-c given"]
    assert result.returncode == 0
    assert provision(tmp_path, "run_phase post-install.d").returncode == 0


def test_a_failing_hook_ends_the_provisioning(tmp_path: Path) -> None:
    files.write(tmp_path / "install.d" / "10-fails", "#!/bin/sh\nexit 3\n", 0o755)
    files.write(tmp_path / "install.d" / "20-after", "#!/bin/sh\necho after\n", 0o755)
    result = provision(tmp_path, "run_phase install.d")
    assert result.returncode == 3
    assert "after" not in result.stdout.replace("20-after", "")


REPOSITORIES = r"""[rocky]
mirrorlist=https://mirrors.rockylinux.org/mirrorlist?arch=$basearch&repo=BaseOS-$releasever$rltype
#baseurl=http://dl.rockylinux.org/$contentdir/$releasever/BaseOS/$basearch/os/
[stream]
metalink=https://mirrors.centos.org/metalink?repo=centos-appstream-$stream&arch=$basearch&protocol=https,http
[stream-source]
metalink=https://mirrors.centos.org/metalink?repo=centos-appstream-source-$stream&arch=source&protocol=https,http
"""


def test_repositories_ask_a_mirror(tmp_path: Path) -> None:
    place = tmp_path / "repos"
    files.write(place / "all.repo", REPOSITORIES)
    result = provision(tmp_path, f"use_mirror {place} http://mirror.example/root")
    assert result.returncode == 0, result.stderr
    lines = (place / "all.repo").read_text().splitlines()
    assert [line for line in lines if line.startswith("baseurl=")] == [
        "baseurl=http://mirror.example/root/$releasever/BaseOS/$basearch/os/",
        "baseurl=http://mirror.example/root/$stream/AppStream/$basearch/os/",
    ]
    # sources are nobody's business here
    assert [line for line in lines if line.startswith(("mirrorlist", "metalink"))] == [
        REPOSITORIES.splitlines()[-1]
    ]


def test_repositories_without_the_mirror_have_crb(tmp_path: Path) -> None:
    """Where none was given they stay as the hooks left them."""
    fake = '#!/bin/sh\necho "$* after $(cat "$REPOSITORIES"/all.repo)"\n'
    files.write(tmp_path / "bin/dnf", fake, 0o755)
    place = tmp_path / "repos"
    files.write(place / "all.repo", "mirrored")
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "REPOSITORIES": str(place)}
    assert provision(tmp_path, f"own_repositories {place}", **env).stdout == ""
    files.write(tmp_path / "yum.repos.d/all.repo", "pristine")
    result = provision(tmp_path, f"own_repositories {place}", **env)
    assert result.stdout == "config-manager --set-enabled crb after pristine\n", result.stderr
    assert "\nown_repositories /etc/yum.repos.d\n" in (PROJECT / "scripts/provision/finish").read_text()


CENTOS_7 = """mirrorlist=http://mirrorlist.centos.org/?release=$releasever&arch=$basearch&repo=os&infra=$infra
#baseurl=http://mirror.centos.org/centos/$releasever/os/$basearch/
gpgcheck=1
"""
TRAIN = """mirrorlist=http://mirrorlist.centos.org?arch=$basearch&release=$releasever&repo=cloud-openstack-train
# baseurl=http://mirror.centos.org/$contentdir/$releasever/cloud/$basearch/openstack-train/
"""


@pytest.mark.parametrize("mirror", ["", "https://mirror.example/vault"], ids=["publisher", "mirror"])
def test_centos_7_comes_from_the_vault(mirror: str, tmp_path: Path) -> None:
    repositories = tmp_path / "repos"
    files.write(repositories / "CentOS-Base.repo", CENTOS_7)
    files.write(tmp_path / "train.repo", TRAIN)
    files.write(
        tmp_path / "bin/yum", f'#!/bin/sh\necho "$*"; cp {tmp_path}/train.repo {repositories}/\n', 0o755
    )
    files.write(tmp_path / "bin/chkconfig", "#!/bin/sh\n", 0o755)
    env = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "STACKLAB_ENABLING": "centos-release-openstack-train",
        **({"STACKLAB_MIRROR": mirror} if mirror else {}),
    }

    def run(hook: str) -> str:
        text = (PROJECT / "elements/openstack-el7" / hook).read_text()
        text = text.replace("/etc/yum.repos.d", str(repositories))
        done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def addresses() -> list[str]:
        texts = [path.read_text() for path in sorted(repositories.iterdir())]
        return [line for text in texts for line in text.splitlines() if line.startswith(("base", "mirror"))]

    assert run("pre-install.d/02-openstack-el7-repositories") == "-y install centos-release-openstack-train\n"
    vault = mirror or "https://vault.centos.org"
    expected = ["7.9.2009/os/$basearch/", "7.9.2009/cloud/$basearch/openstack-train/"]
    assert addresses() == [f"baseurl={vault}/{path}" for path in expected]
    run("finalise.d/91-openstack-el7")
    assert addresses() == [f"baseurl=https://vault.centos.org/{path}" for path in expected]
