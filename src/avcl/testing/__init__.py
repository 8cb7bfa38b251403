"""The contract suite, shipped with the library so that a system in another package can be held to it too."""

from avcl.testing.encoders import check_encoder, stream_of
from avcl.testing.objectives import Call, Free, Grid, Rows, Toy, check_objective
from avcl.testing.systems import check_system, check_trial

__all__ = [
    "Call",
    "Free",
    "Grid",
    "Rows",
    "Toy",
    "check_encoder",
    "check_objective",
    "check_system",
    "check_trial",
    "stream_of",
]
