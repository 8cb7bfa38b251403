"""The contract suite, shipped with the library so that a system in another package can be held to it too."""

from avcl.testing.systems import check_system

__all__ = ["check_system"]
