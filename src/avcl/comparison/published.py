"""The papers' order on VEGAS: mean of both directions of mAP by class, as published for the authors' features.

Only figures that a source shows are here; those that are merely quoted from memory are not. Names are those of the
systems of this library.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Published(NamedTuple):
    """``value`` in [0, 1] and where it stands."""

    value: float
    source: str


_FIGURES = "figure code of the authors of TNN-C-CCA (2020): mean of both directions, 10 components"
_SURVEY = "Table 1 of the survey"

PUBLISHED = {
    "cca": Published(0.3227, _FIGURES),
    "c_cca": Published(0.6476, _FIGURES),
    "c_dcca": Published(0.6981, _FIGURES),
    "zeng2020_tnn_c_cca": Published(0.7422, _FIGURES),
    "zeng2021_eics": Published(0.778, _SURVEY),
    "zhang2021_vae_cca": Published(0.812, _SURVEY),
}
# The paper reports C-DCCA's figure as its own: it stands for it where that one does not take part.
STANDS_FOR = {"zeng2018_s_dcca": "c_dcca"}


def published(systems: Iterable[str]) -> dict[str, Published]:
    """What the papers report of those of ``systems`` that have a figure, least first."""
    names = set(systems)
    found = {name: PUBLISHED[name] for name in names if name in PUBLISHED}
    found |= {n: PUBLISHED[o] for n, o in STANDS_FOR.items() if n in names and o not in names}
    return dict(sorted(found.items(), key=lambda item: item[1].value))
