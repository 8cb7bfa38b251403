"""The plots of a comparison of systems: ranking, classes, precision over recall, our order beside the papers'.

A system keeps one color on the whole page: that of its place in ``PALETTE`` among the systems shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avcl.report.figures import (
    COLORS,
    INK,
    MAX_CLASSES,
    MUTED,
    PALETTE,
    direction_words,
    drawn,
    name_axes,
    place_legend,
    plain,
    short,
)


def system_colors(names: Sequence[str]) -> dict[str, str]:
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def ranking_bars(
    rows: Mapping[str, tuple[float, tuple[float, float] | None, Sequence[float]]], *, chance: float | None, unit: str
) -> str:
    """A bar a system {name: (mean, interval, value of each seed)}, best first; seeds as dots, chance dashed."""
    names = list(rows)

    def draw(axes: Any) -> None:
        for place, name in enumerate(reversed(names)):
            value, span, each = rows[name]
            axes.barh([place], [value], 0.62, color=COLORS["video"], alpha=0.78)
            if span is not None:
                axes.plot(span, [place, place], color=INK, lw=2, solid_capstyle="butt")
            if len(each) > 1:
                axes.plot(each, [place] * len(each), "o", color=INK, ms=3.2, alpha=0.75, clip_on=False)
        if chance is not None:
            axes.axvline(chance, color=MUTED, lw=1.3, ls=(0, (4, 3)))
        axes.set_yticks(range(len(names)), [short(name, 34) for name in reversed(names)])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        name_axes(axes, unit, "")

    said = ", ".join(f"{name} {value:.3g}" for name, (value, *_) in rows.items())
    return drawn(draw, f"{unit}, best first: {said}", "ranking", height=0.9 + 0.34 * len(names))


def bars_by_class(rows: Mapping[str, Mapping[str, float]], colors: Mapping[str, str], *, unit: str) -> str:
    """A group of bars a class {system: {class: value}}; classes by falling mean, of many the best and the worst."""
    classes = list(dict.fromkeys(c for row in rows.values() for c in row))
    mean = {c: float(np.mean([row[c] for row in rows.values() if c in row])) for c in classes}
    order = sorted(classes, key=lambda c: -mean[c])
    if len(order) > MAX_CLASSES:
        order = [*order[: MAX_CLASSES // 2], *order[-(MAX_CLASSES // 2) :]]

    def draw(axes: Any) -> None:
        thick, places = 0.84 / len(rows), np.arange(len(order))
        for i, (name, row) in enumerate(rows.items()):
            at = places - 0.42 + thick * (i + 0.5)
            axes.bar(at, [row.get(c, np.nan) for c in order], thick * 0.9, color=colors[name], label=short(name))
        turned = len(order) > 8 or max(len(c) for c in order) > 10
        slant: dict[str, Any] = {"rotation": 35, "ha": "right"} if turned else {}
        axes.set_xticks(places, [short(c, 18) for c in order], **slant)
        axes.tick_params(axis="x", labelcolor=INK)
        axes.set_ylim(0, 1)
        axes.grid(axis="x", visible=False)
        name_axes(axes, "", unit)
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=8.5, labelcolor=INK,
            handlelength=1.0,
        )  # fmt: skip

    return drawn(draw, f"{unit} of each class for {', '.join(rows)}.", "by-class", height=3.8, width=10.4)


def precision_recall_curves(
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    chance: Mapping[str, float],
    colors: Mapping[str, str],
) -> str:
    """A panel a direction {direction: {system: (recall, precision)}}; ``chance``: precision of a random order."""

    def draw(panels: Any) -> None:
        for axes, (direction, systems) in zip(panels, curves.items(), strict=True):
            plain(axes)
            axes.axhline(chance[direction], color=MUTED, lw=1.3, ls=(0, (4, 3)), label="chance")
            for name, (recall, precision) in systems.items():
                axes.plot(recall, precision, color=colors[name], lw=1.8, label=short(name))
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1.02)
            axes.set_title(direction_words(direction), fontsize=10, color=INK, loc="left")
            name_axes(axes, "recall", "precision")
        place_legend(panels[-1], "best", ncols=1)  # good systems leave room below, weak ones above

    return drawn(draw, f"Precision over recall for {', '.join(curves)}.", "curves", columns=len(curves), height=3.9)


def order_beside(ours: Mapping[str, float], papers: Mapping[str, float], *, words: str) -> str:
    """Each system at (the papers' figure, ours), named."""

    def draw(axes: Any) -> None:
        for name, value in ours.items():
            axes.plot([papers[name]], [value], "o", color=COLORS["video"], ms=7)
            axes.annotate(
                short(name), (papers[name], value), xytext=(-8, 0), textcoords="offset points", fontsize=8.5, color=INK,
                ha="right", va="center",
            )  # fmt: skip
        low, high = min(papers.values()), max(papers.values())
        axes.set_xlim(low - 0.45 * (high - low), high + 0.06 * (high - low))
        axes.margins(y=0.15)
        name_axes(axes, "published mAP (VEGAS)", "mAP here")

    return drawn(draw, words, "order", height=3.8)
