"""Speed of the media room: decode + log-mel + resize, beside PyAV's bare decode and beside the naive way.

    python benchmarks/media.py [--seconds 10] [--size 112] [--threads 1] [--rounds 3] [--folder DIR] [--out FILE]

Ratios are what counts: the machine is shared, so every round times all peers one after the other, and the ratio is the
median over rounds. ``bare`` decodes all frames of picture and sound and throws them away: the limit. ``naive`` turns
every full-size frame into RGB, resizes it in torch and makes the mel spectrum with librosa. ``ours`` is ``read_clip``
and ``log_mel``, once on a grid of 8 frames a second (what training uses) and once with every frame. The files are made
here: a moving texture with grain, and a chirp; ``--folder`` adds files of your own.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from avcl.dsp import log_mel, resize
from avcl.media import MEDIA_SUFFIXES, probe, read_clip
from avcl.media.encode import as_format

RATE, MELS, HOP, FFT = 16_000, 64, 160, 400
FILES = (
    ("h264_360p.mp4", "libx264", "aac", (360, 640)),
    ("h264_720p.mp4", "libx264", "aac", (720, 1280)),
    ("mpeg4_360p.mp4", "mpeg4", "aac", (360, 640)),
    ("mpeg4_720p.mp4", "mpeg4", "aac", (720, 1280)),
    ("vp9_360p.webm", "libvpx-vp9", "libopus", (360, 640)),
    ("vp9_720p.webm", "libvpx-vp9", "libopus", (720, 1280)),
)
OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "23"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "row-mt": "1"},
    "mpeg4": {"qmin": "4", "qmax": "4"},
}


def pictures(count: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """A texture that scrolls, a disk that circles over it, and grain."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 255, (3, 24, 32), dtype=np.uint8))
    texture = resize(coarse, (size[0], 2 * size[1]), "stretch").permute(1, 2, 0).numpy()
    rows, columns = np.mgrid[: size[0], : size[1]]
    for i in range(count):
        picture = np.roll(texture, 3 * i, 1)[:, : size[1]].astype(np.int16)
        center = size[0] * (0.5 + 0.3 * np.sin(i / 9)), size[1] * (0.5 + 0.3 * np.cos(i / 9))
        picture[(rows - center[0]) ** 2 + (columns - center[1]) ** 2 < (size[0] / 8) ** 2] = (240, 40, 40)
        picture += rng.integers(-4, 5, (*size, 1), dtype=np.int16)
        yield np.clip(picture, 0, 255).astype(np.uint8)


def write(path: Path, video: str, audio: str, size: tuple[int, int], seconds: float, fps: int = 25) -> None:
    rate = 48_000
    t = np.arange(int(seconds * rate)) / rate
    wave = (0.3 * np.sin(2 * np.pi * (200 + 40 * t) * t)).astype(np.float32)
    wave = np.stack([wave, 0.5 * wave])
    with av.open(str(path), "w") as out:
        stream = out.add_stream(video, rate=fps, options=OPTIONS[video])
        stream.height, stream.width, stream.pix_fmt = size[0], size[1], "yuv420p"
        stream.bit_rate = int(size[0] * size[1] * fps * 0.1)
        sound = out.add_stream(audio, rate=rate)
        sound.layout = "stereo"
        sent, step = 0, sound.codec_context.frame_size or 1024
        for i, picture in enumerate(pictures(int(seconds * fps), size)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            out.mux(stream.encode(frame))
            while sent < min(wave.shape[1], (i + 1) * rate // fps):
                chunk = as_format(wave[:, sent : sent + step], sound.codec_context.format.name)
                part = av.AudioFrame.from_ndarray(*chunk, layout="stereo")
                part.sample_rate, part.pts, part.time_base = rate, sent, Fraction(1, rate)
                out.mux(sound.encode(part))
                sent += step
        out.mux(stream.encode(None))
        out.mux(sound.encode(None))


def streams_of(container: Any, threads: int) -> list[Any]:
    chosen = [s for s in (container.streams.best("video"), container.streams.best("audio")) if s is not None]
    for stream in chosen:
        if stream.type == "video":
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
    return chosen


def bare(path: Path, threads: int) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(streams_of(container, threads)))


def naive(path: Path, threads: int, size: int) -> Any:
    import librosa

    waves, frames, rate = [], [], RATE
    with av.open(str(path)) as container:
        for frame in container.decode(streams_of(container, threads)):
            if isinstance(frame, av.VideoFrame):
                full = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                frames.append(resize(full, (size, size)))
            else:
                waves.append(frame.to_ndarray().mean(0))
                rate = frame.sample_rate
    mono = librosa.resample(np.concatenate(waves), orig_sr=rate, target_sr=RATE, res_type="polyphase")
    mel = librosa.feature.melspectrogram(y=mono, sr=RATE, n_fft=FFT, hop_length=HOP, n_mels=MELS)
    return torch.stack(frames), np.log(np.maximum(mel, 1e-6))


def ours(path: Path, size: int, fps: float | None) -> Any:
    clip = read_clip(path, fps=fps, size=(size, size), rate=RATE, channels=1)
    mel = log_mel(clip.streams["audio"].data, sample_rate=RATE, n_fft=FFT, hop=HOP, n_mels=MELS)
    return clip.streams["video"].data, mel


def measure(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    size, threads = arguments.size, arguments.threads
    peers: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare(path, threads),
        "ours_8fps": lambda: ours(path, size, 8.0),
        "ours_all": lambda: ours(path, size, None),
        "naive": lambda: naive(path, threads, size),
    }
    rounds: list[dict[str, float]] = []
    for number in range(arguments.rounds + 1):
        seconds = {}
        for name, call in peers.items():
            begin = time.perf_counter()
            call()
            seconds[name] = time.perf_counter() - begin
        if number:  # the first round imports libraries and fills caches
            rounds.append(seconds)
    middle = {name: statistics.median(r[name] for r in rounds) for name in peers}
    ratios = {
        f"{name}_of_{peer}": statistics.median(r[peer] / r[name] for r in rounds)
        for name in ("ours_8fps", "ours_all")
        for peer in ("bare", "naive")
    }
    duration = probe(path).duration
    rates = {f"{name}_media_seconds_per_second": duration / value for name, value in middle.items()}
    return {"file": path.name, "media_seconds": duration, "seconds": middle, **rates, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/media.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    print(f"{'':34}{'seconds':>8}{'':24}   8 fps: of bare, of naive   all: of bare, of naive")
    print(f"{'file':<34}{'bare':>8}{'8 fps':>8}{'all':>8}{'naive':>8}")
    with tempfile.TemporaryDirectory() as scratch:
        paths = []
        for name, video, audio, size in FILES:
            paths.append(Path(scratch) / name)
            write(paths[-1], video, audio, size, arguments.seconds)
        if arguments.folder is not None:
            found = (p for p in sorted(arguments.folder.rglob("*")) if p.suffix.lower() in MEDIA_SUFFIXES)
            infos = ((p, probe(p)) for p in found)
            paths += [p for p, info in infos if info.video and info.audio and not info.is_image]
        for path in paths:
            row = measure(path, arguments)
            rows.append(row)
            s = row["seconds"]
            print(
                f"{row['file'][:32]:<34}{s['bare']:8.3f}{s['ours_8fps']:8.3f}{s['ours_all']:8.3f}{s['naive']:8.3f}"
                f"{row['ours_8fps_of_bare']:17.2f}{row['ours_8fps_of_naive']:10.2f}"
                f"{row['ours_all_of_bare']:15.2f}{row['ours_all_of_naive']:10.2f}",
                flush=True,
            )
    keys = [key for key in rows[0] if "_of_" in key]
    summary = {key: statistics.geometric_mean(row[key] for row in rows) for key in keys}
    print("geometric means: " + ", ".join(f"{key} {value:.2f}" for key, value in summary.items()))
    ratios = [[row["file"], *(round(row[key], 2) for key in keys)] for row in rows]
    result = {
        "title": "Decode + log-mel + resize beside a bare decode and the naive way",
        "about": "benchmarks/media.py: ratios of media seconds per second in the same run, to PyAV's bare decode of "
        "the same files (aim 0.8) and to decoding every full-size frame to RGB, resizing it and librosa's mel (aim 3). "
        f"Pictures at 8 a second or all, {arguments.size} pixels, {arguments.threads} thread, PyAV {av.__version__}.",
        "tables": [
            {
                "title": "",
                "columns": ["file", *(key.replace("_", " ") for key in keys)],
                "rows": [*ratios, ["geometric mean", *(round(summary[key], 2) for key in keys)]],
            }
        ],
        "summary": summary,
        "rows": rows,
        "settings": {key: str(value) for key, value in vars(arguments).items() if key not in ("out", "folder")},
        "versions": {
            "python": platform.python_version(),
            "av": av.__version__,
            "torch": torch.__version__,
            "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
