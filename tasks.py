"""The tasks of stacklab, assembled. They are defined in stacklab/tasks/, one module a subject."""

from __future__ import annotations

from invoke import Collection

from stacklab.tasks import base, boxes, images, inputs, labs, releases, snapshots, tests, topologies

namespace = Collection.from_module(labs)
namespace.add_task(base.build_base)
namespace.add_task(tests.test)
namespace.add_task(releases.releases)
namespace.add_task(releases.answers)
namespace.add_collection(Collection("base", base.list_, base.show, base.diff, base.verify, base.delete))
for module in (boxes, images, inputs, snapshots, topologies):
    namespace.add_collection(Collection.from_module(module))
