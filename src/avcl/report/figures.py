"""The plots of the page, as inline SVG drawn by matplotlib; colors are CSS variables, so they follow light and dark.

Every modality has one color and one marker everywhere: audio, video, text. No global state of matplotlib is touched.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What is drawn -> the CSS variable that replaces it in the SVG.
INK, MUTED, GRID, PAPER = "#101112", "#707172", "#d0d1d2", "#fdfdfc"
COLORS = {"audio": "#c2560d", "video": "#1e5fd2", "text": "#0b8f5c"}
OTHER = "#8a3fb1"  # any further modality
MATCHED = "#0d9f6f"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    OTHER: "--other",
    MATCHED: "--good",
    **{color: f"--{name}" for name, color in COLORS.items()},
}
MARKERS = {"audio": "o", "video": "^", "text": "s"}
MAX_CLASSES = 24  # bars; of more classes the best and the worst are shown
MAX_POINTS = 500  # rows of the map
# Mid-lightness hues that stand on white and on black.
PALETTE = (
    "#e15759", "#4e79a7", "#59a14f", "#f28e2b", "#b07aa1", "#76b7b2",
    "#d4a017", "#9c755f", "#ff6fae", "#7f8c2a", "#3fb5e0", "#8c6bd8",
)  # fmt: skip


def modality_color(name: str) -> str:
    return COLORS.get(name, OTHER)


def short(text: str, length: int = 26) -> str:
    """``text`` for a label: printable, one line, at most ``length`` characters."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return clean if len(clean) <= length else clean[: length - 1] + "…"


def recall_curve(
    curves: Mapping[str, tuple[str, NDArray[np.int64], NDArray[np.float64]]],
    chance: tuple[NDArray[np.int64], NDArray[np.float64]],
    points: Mapping[str, Sequence[tuple[int, float, float, float]]],
) -> str:
    """Share of queries answered within the first k. ``curves`` {direction: (query modality, k, recall)}; ``points``
    {direction: (k, recall, low, high)} with intervals; ``chance`` (k, recall)."""

    def draw(axes: Any) -> None:
        axes.plot(*chance, color=MUTED, ls=(0, (4, 3)), lw=1.3, label="chance")
        for direction, (modality, k, recall) in curves.items():
            color = modality_color(modality)
            axes.plot(k, recall, color=color, lw=2, label=direction_words(direction))
            for at, value, low, high in points.get(direction, ()):
                axes.plot([at, at], [low, high], color=color, lw=1.2, alpha=0.8)
                axes.plot([at], [value], color=color, marker=MARKERS.get(modality, "D"), ms=5, clip_on=False)
        axes.set_xscale("log")
        axes.set_xlim(left=1)
        axes.set_ylim(0, 1.02)
        ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000) if t <= chance[0][-1]]
        axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
        axes.minorticks_off()
        name_axes(axes, "k (how far down the list one looks)", "share of queries answered")
        place_legend(axes, "lower right")

    return drawn(draw, "Recall at k for each direction, with chance as a dashed line.", "recall")


def similarity_histogram(matched: NDArray[np.float64], unmatched: NDArray[np.float64], name: str) -> str:
    """Densities of the similarities of matched and unmatched pairs."""

    def draw(axes: Any) -> None:
        low, high = min(matched.min(), unmatched.min()), max(matched.max(), unmatched.max())
        pad = max(1e-3, 0.03 * (high - low))
        bins = np.linspace(low - pad, high + pad, 41)
        for values, color, label in ((unmatched, MUTED, "unmatched"), (matched, MATCHED, "matched")):
            share = np.histogram(values, bins)[0] / len(values)
            axes.stairs(share, bins, color=color, fill=True, alpha=0.28)
            axes.stairs(share, bins, color=color, lw=1.6, label=f"{label} (mean {values.mean():.2f})")
        name_axes(axes, f"similarity ({short(name)})", "share of pairs")
        place_legend(axes, "best")

    words = f"Histogram of similarities: matched pairs average {matched.mean():.2f}, unmatched {unmatched.mean():.2f}."
    return drawn(draw, words, "histogram")


def class_bars(
    per_class: Mapping[str, Mapping[str, Mapping[str, float]]], metric: str, chance: Mapping[str, float]
) -> str:
    """One row a class, one bar a direction, a tick where chance is. ``chance`` {class: value}."""
    directions = [d for d in per_class if d != "mean"]
    mean = {c: float(np.mean([per_class[d][c][metric] for d in directions if c in per_class[d]])) for c in chance}
    order = sorted(chance, key=lambda c: -mean[c])
    if len(order) > MAX_CLASSES:
        order = [*order[: MAX_CLASSES // 2], *order[-(MAX_CLASSES // 2) :]]

    def draw(axes: Any) -> None:
        thick = 0.8 / len(directions)
        rows = np.arange(len(order))
        for i, direction in enumerate(directions):
            values = [per_class[direction].get(c, {}).get(metric, np.nan) for c in order]
            color = modality_color(direction.split("_to_")[0])
            axes.barh(
                rows - 0.4 + thick * (i + 0.5), values, thick * 0.86, color=color, label=direction_words(direction)
            )
        at = [chance[c] for c in order]
        axes.vlines(at, rows - 0.45, rows + 0.45, color=INK, lw=1.4, label="chance")
        counts = [int(per_class[directions[0]].get(c, {}).get("queries", 0)) for c in order]
        names = [f"{short(c)} ({n})" for c, n in zip(order, counts, strict=True)]
        axes.set_yticks(rows, names)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        name_axes(axes, metric, "")
        axes.grid(axis="y", visible=False)
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9, labelcolor=INK,
            handlelength=1.2,
        )  # fmt: skip

    return drawn(draw, f"{metric} of each class, with chance.", "classes", height=1.0 + 0.3 * len(order))


def training_curves(series: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], unit: str) -> str:
    """One panel a curve, {name: (x, y)}: losses and validation scores over steps or epochs."""

    def draw(panels: Any) -> None:
        for axes, (name, (x, y)) in zip(panels, series.items(), strict=True):
            plain(axes)
            few = len(x) < 30
            axes.plot(x, y, color=INK, lw=1.6, marker="o" if few else None, ms=3)
            axes.set_title(short(name, 34), fontsize=10, color=INK, loc="left")
            name_axes(axes, unit, "")

    words = "; ".join(f"{n} from {y[0]:.3g} to {y[-1]:.3g}" for n, (_, y) in series.items())
    return drawn(draw, f"Training curves: {words}.", "training", columns=len(series))


def embedding_map(
    points: Mapping[str, NDArray[np.float64]],
    labels: NDArray[np.int64],
    names: Sequence[str],
    axis_names: Sequence[str],
) -> str:
    """All modalities in one plane, twice: colored by modality, and by class. ``points`` {modality: [N, 2]}."""
    present = np.unique(labels[labels >= 0])
    by_class = len(present) > 1

    def draw(panels: Any) -> None:
        panels = panels if by_class else [panels] if not isinstance(panels, Sequence | np.ndarray) else panels
        for axes in panels:
            plain(axes)
            axes.set_xticks([])
            axes.set_yticks([])
            name_axes(axes, axis_names[0], axis_names[1])
        for modality, at in points.items():
            marker = MARKERS.get(modality, "D")
            color = modality_color(modality)
            panels[0].scatter(*at.T, s=14, marker=marker, color=color, alpha=0.75, lw=0, label=short(modality))
            if by_class:
                colors = [class_color(int(n), len(present), present) for n in labels]
                panels[1].scatter(*at.T, s=14, marker=marker, color=colors, alpha=0.8, lw=0)
        place_legend(panels[0], "best", markerscale=1.6)
        panels[0].set_title("by modality", fontsize=10, color=INK, loc="left")
        if by_class:
            panels[1].set_title("by class", fontsize=10, color=INK, loc="left")
            if len(present) <= len(PALETTE):
                for n in present:
                    color = class_color(int(n), len(present), present)
                    panels[1].plot([], [], "o", ms=5, color=color, label=short(class_name(int(n), names), 18))
                panels[1].legend(
                    loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=4, frameon=False, fontsize=8,
                    labelcolor=INK, handletextpad=0.1, columnspacing=0.8,
                )  # fmt: skip

    words = f"Map of {' and '.join(points)} embeddings in two dimensions."
    return drawn(draw, words, "map", columns=2 if by_class else 1, height=4.4)


def controls_beside(
    rows: Mapping[str, tuple[float, tuple[float, float] | None]], *, chance: float | None, unit: str
) -> str:
    """A line for each row {name: (value, interval)}, the first one (the system) in color; chance as a dashed line."""
    names = list(rows)

    def draw(axes: Any) -> None:
        for place, name in enumerate(reversed(names)):
            value, span = rows[name]
            color = COLORS["video"] if name == names[0] else MUTED
            if span is not None:
                axes.plot(span, [place, place], color=color, lw=3, alpha=0.45, solid_capstyle="round")
            axes.plot([value], [place], "o", color=color, ms=7)
        if chance is not None:
            axes.axvline(chance, color=INK, lw=1, ls="--")
        axes.set_yticks(range(len(names)), [short(name, 34) for name in reversed(names)])
        axes.set_ylim(-0.6, len(names) - 0.4)
        name_axes(axes, unit, "")

    said = ", ".join(f"{name} {value:.3g}" for name, (value, _) in rows.items())
    return drawn(draw, f"{unit}: {said}", "controls", height=0.8 + 0.42 * len(names))


def class_name(number: int, names: Sequence[str]) -> str:
    return "" if number < 0 else names[number] if number < len(names) else str(number)


def class_color(number: int, count: int, present: NDArray[np.int64]) -> str:
    if number < 0:
        return MUTED
    place = int(np.searchsorted(present, number))
    if count <= len(PALETTE):
        return PALETTE[place]
    import colorsys

    red, green, blue = colorsys.hls_to_rgb(place / count, 0.5, 0.6)
    return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"


def direction_words(direction: str) -> str:
    """``audio_to_video`` as "audio → video"."""
    return " → ".join(short(part) for part in direction.split("_to_"))


# ----------------------------------------------------------------------------------------------------------- matplotlib
def drawn(
    draw: Callable[[Any], None], words: str, name: str, *, height: float = 3.4, columns: int = 0, width: float = 6.2
) -> str:
    """Run ``draw`` on one axes (or ``columns`` of them) and return an accessible inline SVG without fixed size."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: Any = {
        "text.parse_math": False,  # a dollar sign in a name is a dollar sign
        "svg.fonttype": "none",
        "svg.hashsalt": f"{name}: {words}",  # ids follow from the content; figures share a page
        "axes.unicode_minus": False,
        "font.family": "sans-serif",
        "font.size": 10,
        "path.simplify": True,
    }
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*[Gg]lyph.*")  # the browser's fonts draw the text, not DejaVu
        figure = Figure(figsize=(max(1, columns) * 5.2 if columns > 1 else width, height), layout="constrained")
        figure.patch.set_alpha(0)
        if columns:
            draw(list(figure.subplots(1, columns, squeeze=False)[0]))
        else:
            axes = figure.subplots()
            plain(axes)
            draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), words, name)


def _inline(svg: str, words: str, name: str) -> str:
    from html import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)  # several figures share a page; clip paths keep their (hashed) ids
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    svg = re.sub(r"\s+\n", "\n", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    head = f'<svg class="chart {name}" role="img" aria-label="{escape(words)}"'
    svg = re.sub(r"<svg ", head + " ", svg, count=1)
    start = svg[: svg.index(">")]
    return re.sub(r' (width|height|xmlns[:\w]*|version)="[^"]*"', "", start) + svg[svg.index(">") :]


def plain(axes: Any) -> None:
    """No frame, a faint grid behind what is drawn."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=MUTED, labelcolor=MUTED, length=0, labelsize=9)
    axes.grid(color=GRID, lw=0.6, alpha=0.7)
    axes.set_axisbelow(True)


def name_axes(axes: Any, x: str, y: str) -> None:
    """What stands along both axes."""
    axes.set_xlabel(x, color=MUTED, fontsize=9.5)
    axes.set_ylabel(y, color=MUTED, fontsize=9.5)


def place_legend(axes: Any, where: str, **more: Any) -> None:
    """The legend without a frame; ``where``, ``more``: as matplotlib takes them."""
    axes.legend(loc=where, frameon=False, fontsize=9, labelcolor=INK, **more)
