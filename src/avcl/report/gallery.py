"""The gallery: best and worst queries with what was found, as thumbnails, spectrograms and players inside the page.

What is shown is what the model saw and heard: the decoded clip. A player holds the original file where a browser
plays it, it is whole and small; else a preview encoded from the decoded clip. A byte budget keeps the page small:
beyond it only links to the original files remain. Data without media (feature files) give a table of ids instead.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray

from avcl.data.dataset import Data
from avcl.data.predictions import Predictions
from avcl.dsp import log_mel, resize
from avcl.errors import AvclError
from avcl.media import encode_image, probe, write_audio, write_video
from avcl.metrics.ranking import Similarity, score_blocks
from avcl.report.figures import class_name, direction_words, short
from avcl.tasks.retrieval import Direction
from avcl.types import Clip

FILE_BYTES = 300_000  # of one player
PAGE_BYTES = 10_000_000  # of all pictures and players before base64 makes them a third larger
TOP = 3
PLAYABLE = {".webm": "video/webm", ".mp4": "video/mp4", ".m4v": "video/mp4"}
PLAYABLE_CODECS = ("h264", "vp8", "vp9", "av1")
FRAMES = 4
THUMB = 96  # pixels


def gallery(
    directions: Mapping[str, Direction],
    predictions: Predictions,
    *,
    data: Data | None,
    folder: Path,
    each: int = 3,
    similarity: Similarity | None = None,
) -> str:
    """HTML of the ``each`` best and worst queries of every direction."""
    media = None if data is None or data.kind == "features" else Media(data, folder)
    return "".join(_direction(d, predictions, media, each, similarity) for d in directions.values())


def _direction(
    d: Direction, predictions: Predictions, media: Media | None, each: int, similarity: Similarity | None
) -> str:
    rank = d.ranking.expected_rank
    queries = predictions.of(d.query, d.gallery)[d.rows]
    items = torch.from_numpy(predictions.of(d.gallery, d.query)[d.columns])
    own = np.einsum("nd,nd->n", *_unit_pairs(d, queries, predictions))
    each = min(each, len(rank) // 2) or min(1, len(rank))
    best = np.lexsort((-own, rank))[:each].tolist()
    worst = [i for i in np.lexsort((own, -rank))[:each].tolist() if i not in best]
    chosen = [*((i, "best") for i in best), *((i, "worst") for i in worst)]
    if not chosen:
        return ""
    picked = torch.from_numpy(queries[[i for i, _ in chosen]])
    blocks = score_blocks(picked, items, similarity=similarity or predictions.similarity)
    rows = np.concatenate([scores for _, scores in blocks])
    answers = [_Answer(d, predictions, i, kind, scores) for (i, kind), scores in zip(chosen, rows, strict=True)]
    body = _table(answers) if media is None else "".join(_card(a, media) for a in answers)
    return f'<h3 class="{escape(d.query)}">{escape(direction_words(d.name))}</h3>{body}'


def _unit_pairs(d: Direction, queries: NDArray[np.float32], predictions: Predictions) -> tuple[NDArray, NDArray]:
    """Directions of query and own counterpart, to order queries of equal rank (zeros where the spaces differ)."""
    partner = predictions.of(d.gallery, d.query)[d.rows]
    if queries.shape != partner.shape:
        return np.zeros((len(queries), 1)), np.zeros((len(queries), 1))
    units = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (queries, partner)]
    return units[0], units[1]


class _Answer:
    """One query with its first hits and the right answer: rows of the predictions, ranks, similarities."""

    def __init__(self, d: Direction, predictions: Predictions, query: int, kind: str, scores: NDArray[np.float32]):
        self.d, self.kind = d, kind
        self.ids, self.labels, self.names = predictions.ids, predictions.labels, predictions.label_names
        self.row = int(d.rows[query])
        relevant = d.column_keys == d.row_keys[query]
        order = np.argsort(-scores, kind="stable")
        self.hits = [self._hit(int(c), scores, relevant) for c in order[:TOP]]
        own = np.flatnonzero(d.columns == self.row)
        # the own counterpart; where the gallery lists distinct items only, the best placed right answer
        right = int(own[0]) if len(own) and relevant[own[0]] else int(order[relevant[order]][0])
        self.right = self._hit(right, scores, relevant)
        self.first_rank = float(d.ranking.expected_rank[query])

    def _hit(self, column: int, scores: NDArray[np.float32], relevant: NDArray[np.bool_]) -> _Hit:
        above, tied = int((scores > scores[column]).sum()), int((scores == scores[column]).sum())
        return _Hit(int(self.d.columns[column]), above + 1, above + tied, float(scores[column]), bool(relevant[column]))

    def name(self, row: int) -> str:
        label = class_name(int(self.labels[row]), self.names)
        return escape(short(self.ids[row], 40)) + (
            f' <span class="label">{escape(short(label))}</span>' if label else ""
        )


class _Hit:
    def __init__(self, row: int, first: int, last: int, score: float, relevant: bool):
        self.row, self.score, self.relevant = row, score, relevant
        self.place = f"{first}" if first == last else f"{first} to {last} (tied)"

    @property
    def mark(self) -> str:
        return '<b class="yes">✓ right</b>' if self.relevant else '<b class="no">✗ wrong</b>'


def _table(answers: list[_Answer]) -> str:
    head = "<tr><th>query</th><th>right answer</th><th>its rank</th>"
    head += "".join(f"<th>hit {i + 1}</th>" for i in range(TOP)) + "</tr>"
    rows = ""
    for a in answers:
        hits = "".join(f"<td>{a.name(h.row)}<br>{h.mark} {h.score:.3f}</td>" for h in a.hits)
        hits += "<td></td>" * (TOP - len(a.hits))
        right = f"<td>{a.name(a.right.row)}</td><td>{a.right.place} of {a.d.ranking.n_gallery}</td>"
        rows += f'<tr><td><span class="tag {a.kind}">{a.kind}</span> {a.name(a.row)}</td>{right}{hits}</tr>'
    return f'<div class="scroll"><table class="ids">{head}{rows}</table></div>'


def _card(a: _Answer, media: Media) -> str:
    query = media.show(a.ids[a.row], a.d.query)
    hits = ""
    for h in a.hits:
        word = f"#{h.place} · {h.mark} · similarity {h.score:.2f}"
        hits += f'<figure class="{"hit" if h.relevant else "miss"}"><figcaption>{word}<br>{a.name(h.row)}</figcaption>'
        hits += media.show(a.ids[h.row], a.d.gallery) + "</figure>"
    if a.right.row not in [h.row for h in a.hits]:
        word = f"right answer at rank {a.right.place} · similarity {a.right.score:.2f}"
        hits += f'<figure class="right"><figcaption>{word}<br>{a.name(a.right.row)}</figcaption>'
        hits += media.show(a.ids[a.right.row], a.d.gallery) + "</figure>"
    place = f"<b>{a.first_rank:g}</b> of {a.d.ranking.n_gallery}"
    head = f'<span class="tag {a.kind}">{a.kind}</span> first right answer at rank {place}'
    asked = (
        f'<figure class="query"><figcaption>query ({escape(a.d.query)})<br>{a.name(a.row)}</figcaption>{query}</figure>'
    )
    return f'<article class="card"><header>{head}</header><div class="row">{asked}{hits}</div></article>'


class Media:
    """Clips of a data set as HTML: an image and a player, inside the page as long as the budget lasts."""

    def __init__(self, data: Data, folder: Path):
        self.data, self.folder, self.left = data, folder, PAGE_BYTES
        self.place = {id: i for i, id in enumerate(data.ids)}
        self.clips: dict[str, Clip | str] = {}
        self.shown: dict[tuple[str, str], tuple[str, int]] = {}
        self.players: dict[tuple[str, str], tuple[str, int]] = {}

    def show(self, id: str, modality: str) -> str:
        """The pictures or the sound of one clip; the reason in words where it cannot be shown."""
        clip = self._clip(id)
        if isinstance(clip, str):
            return f'<p class="note">{escape(clip)}</p>'
        if modality not in ("audio", "video") or modality not in clip.streams:
            return f'<p class="note">{escape(modality)} of {escape(short(id, 40))}</p>'
        key = (id, modality)
        if key not in self.shown:
            self.shown[key] = self._image(clip, modality)
        html = self._spend(self.shown[key])
        if self.left > 0:
            if key not in self.players:
                self.players[key] = self._player(clip, modality)
            html += self._spend(self.players[key])
        return html + self._link(clip)

    def _spend(self, made: tuple[str, int]) -> str:
        html, size = made
        if size > self.left:
            self.left = 0
            return ""
        self.left -= size
        return html

    def _clip(self, id: str) -> Clip | str:
        if id not in self.clips:
            try:
                self.clips[id] = self.data.clip(self.place[id])
            except KeyError:
                self.clips[id] = "not in this data set"
            except AvclError as error:
                self.clips[id] = str(error)
        return self.clips[id]

    def _image(self, clip: Clip, modality: str) -> tuple[str, int]:
        name = escape(short(clip.id, 40))
        if modality == "video":
            picture, alt = _strip(clip), f"frames of {name} from first to last"
        else:
            picture, alt = _spectrogram(clip), f"spectrogram of {name}: time to the right, frequency upward"
        if picture is None:
            return f'<p class="note">nothing recorded in {name}</p>', 0
        content = encode_image(picture, "jpeg")
        return f'<img class="{modality}" alt="{alt}" src="{_data_uri(content, "image/jpeg")}">', len(content)

    def _player(self, clip: Clip, modality: str) -> tuple[str, int]:
        made = _original(clip) if modality == "video" else None
        if made is None:
            try:
                made = _preview(clip, modality)
            except AvclError:
                return "", 0
        content, kind = made
        name = escape(short(clip.id, 40))
        if not content or len(content) > FILE_BYTES:
            return "", 0
        source = f'controls preload="metadata" src="{_data_uri(content, kind)}"'
        if modality == "video":
            return f'<video {source} playsinline aria-label="video of {name}"></video>', len(content)
        return f'<audio {source} aria-label="sound of {name}"></audio>', len(content)

    def _link(self, clip: Clip) -> str:
        if clip.source is None:
            return ""
        path = Path(clip.source.path)
        if not path.is_file():
            return ""
        try:
            relative = os.path.relpath(path.resolve(), self.folder.resolve())
        except ValueError:  # another drive
            return ""
        start, end = clip.source.start, clip.source.end
        span = f"#t={start or 0:g}" + (f",{end:g}" if end is not None else "") if start or end is not None else ""
        target = escape(quote(Path(relative).as_posix()) + span)
        return f'<a class="file" href="{target}">{escape(short(path.name, 32))}</a>'


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _frames(clip: Clip) -> NDArray[np.uint8]:
    """[T, H, W, 3] what was recorded of the pictures."""
    stream = clip.streams["video"]
    pictures = stream.data[0][stream.mask[0]]
    if pictures.is_floating_point():
        pictures = (pictures * 255).round().clamp(0, 255).to(torch.uint8)
    return pictures.permute(0, 2, 3, 1).contiguous().numpy()


def _strip(clip: Clip) -> NDArray[np.uint8] | None:
    """A few frames side by side."""
    frames = _frames(clip)
    if len(frames) == 0:
        return None
    at = np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int))
    chosen = torch.from_numpy(frames[at]).permute(0, 3, 1, 2)
    height, width = chosen.shape[2:]
    if height != THUMB:
        chosen = resize(chosen, (THUMB, max(1, round(width * THUMB / height))), "stretch")
    return np.concatenate(list(chosen.permute(0, 2, 3, 1).numpy()), axis=1)


def _spectrogram(clip: Clip) -> NDArray[np.uint8] | None:
    """Log-mel in color: time to the right, frequency upward, 60 dB of range."""
    stream = clip.streams["audio"]
    wave = (stream.data * stream.mask[..., None]).mean(2)
    rate = stream.rate
    if wave.shape[1] < 64 or not stream.mask.any():
        return None
    n_fft = 1 << max(6, round(np.log2(rate * 0.032)))
    hop = max(1, min(n_fft, wave.shape[1] // 320))
    bands = log_mel(wave.float(), sample_rate=rate, n_fft=n_fft, hop=hop, n_mels=min(64, n_fft // 8))[0].numpy()
    from matplotlib import colormaps

    level = np.clip(1 + (bands - bands.max()) / np.log(1e6), 0, 1)
    step = max(1, len(level) // 400)
    colors = colormaps["magma"](level[::step].T[::-1])[..., :3]
    return np.repeat((colors * 255).astype(np.uint8), 2, axis=0)


def _original(clip: Clip) -> tuple[bytes, str] | None:
    """The file itself where a browser plays it, the clip is all of it, and it is small."""
    source = clip.source
    if source is None or source.start is not None or source.end is not None:
        return None
    path = Path(source.path)
    kind = PLAYABLE.get(path.suffix.lower())
    try:
        if kind is None or path.stat().st_size > FILE_BYTES:
            return None
        video = probe(path).video
        return (path.read_bytes(), kind) if video is not None and video.codec in PLAYABLE_CODECS else None
    except (OSError, AvclError):
        return None


def _preview(clip: Clip, modality: str) -> tuple[bytes, str]:
    """The decoded clip as a small file: webm with its sound, or mp3."""
    sound = clip.streams.get("audio")
    wave = None if sound is None or not sound.mask.any() else sound.data[0].float().clamp(-1, 1).numpy()
    with tempfile.TemporaryDirectory() as folder:
        if modality == "audio":
            if wave is None or sound is None:
                return b"", ""
            path = Path(folder, "sound.mp3")
            write_audio(path, wave[:, :2], round(sound.rate))
            return path.read_bytes(), "audio/mpeg"
        frames = _frames(clip)
        if len(frames) < 2:
            return b"", ""
        even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        path = Path(folder, "video.webm")
        rate = None if sound is None else round(sound.rate)
        write_video(path, even, None if wave is None else wave[:, :2], fps=clip.streams["video"].rate, sample_rate=rate)
        return path.read_bytes(), "video/webm"
