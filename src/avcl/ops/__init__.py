"""One pydantic model per verb: the only door to the outside, shared by shell and HTTP.

A model holds paths, numbers and literals; unknown keys are errors with a did-you-mean. ``run()`` yields one plain,
JSON-able dict per result; ``human`` says the same to a person. Nothing here imports torch until a verb runs.
"""

from __future__ import annotations

from avcl.ops.archive import Embed, Export, Features, IndexBuild, IndexInfo, IndexRemove, IndexUpdate, Search
from avcl.ops.base import Op
from avcl.ops.compare import Compare
from avcl.ops.events import Events
from avcl.ops.generate import Generate
from avcl.ops.learn import Demo, Evaluate, Train, World
from avcl.ops.localize import Localize
from avcl.ops.look import Describe, Doctor, List, Probe
from avcl.ops.recognize import Recognize
from avcl.ops.separate import Separate
from avcl.ops.sync import Sync
from avcl.ops.verify import Verify

VERBS: tuple[type[Op], ...] = (
    Doctor,
    Probe,
    World,
    Train,
    Evaluate,
    Compare,
    Embed,
    Features,
    Export,
    IndexBuild,
    IndexUpdate,
    IndexRemove,
    IndexInfo,
    Search,
    Events,
    Generate,
    Localize,
    Recognize,
    Separate,
    Sync,
    List,
    Describe,
    Verify,
    Demo,
)
