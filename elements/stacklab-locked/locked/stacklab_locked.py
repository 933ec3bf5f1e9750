"""dnf's plugin of a locked build: of all repositories dnf sees only what the manifest has.

What is installed stays seen, which it does not with dnf's own includepkgs: so a later version of
the base image can be brought back.
"""

from pathlib import Path

import dnf

MANIFEST = Path("/tmp/in_target.d/locked/packages.txt")


class Locked(dnf.Plugin):
    """Leaves out all other packages of the repositories, each time dnf has read them."""

    name = "stacklab-locked"

    def sack(self):
        """Called by dnf."""
        lines = MANIFEST.read_text(encoding="utf-8").splitlines()
        wanted = {tuple(line.split()[:3]) for line in lines}
        others = [
            one
            for one in self.base.sack.query().available()
            if (one.name, f"{one.epoch}:{one.version}-{one.release}", one.arch) not in wanted
        ]
        self.base.sack.add_excludes(self.base.sack.query().filterm(pkg=others))
