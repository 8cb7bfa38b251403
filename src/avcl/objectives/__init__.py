"""Pure functions of tensors, named as in section 3.2 of the survey: equation first, scalar out."""

from avcl.objectives.contrastive import info_nce
from avcl.objectives.correlation import Canonical, Moments, add_moments, canonical_directions

__all__ = ["Canonical", "Moments", "add_moments", "canonical_directions", "info_nce"]
