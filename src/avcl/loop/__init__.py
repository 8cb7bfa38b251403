"""The one training loop: ``fit`` a system to data, with checkpoints, exact resume and a log.

run.py: the way through epochs, validation and checkpoints · learner.py: what one batch does · chunks.py: batches larger
than the machine · processes.py: several of them · optimizer.py: a phase in play · checkpoint.py: whole or absent ·
journal.py: metrics.jsonl and Ctrl-C.
"""

from __future__ import annotations

from avcl.loop.processes import Processes as Processes
from avcl.loop.processes import launched as launched
from avcl.loop.run import FitResult as FitResult
from avcl.loop.run import fit as fit
