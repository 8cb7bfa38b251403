"""One exception class per cause: what happened, where (file, time), why, and what to do about it.

Every class carries a stable ``code`` (the same in Python, shell and HTTP) and an ``exit`` status for the shell:
2 usage or configuration · 3 missing extra · 4 input media · 5 model and index do not belong together.
Errors of other libraries (PyAV, FAISS, pydantic, safetensors, ...) are translated at the border and never reach a user.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class AvclError(Exception):
    """``code message``; the base of everything that this package raises on purpose.

    ``what``: one sentence, at most 200 characters with the file name. ``file`` and ``time`` (seconds of the clock):
    where.
    ``hint``: the one thing to do. ``as_dict()`` is what ``--json`` prints.
    """

    code: ClassVar[str] = "E-AVCL"
    exit: ClassVar[int] = 2

    def __init__(self, what: str, *, file: str | Path | None = None, time: float | None = None, hint: str = ""):
        self.what, self.file, self.time, self.hint = what, None if file is None else str(file), time, hint
        super().__init__(what)

    def __str__(self) -> str:
        where = "" if self.file is None else f" {self.file}"
        at = "" if self.time is None else f" at {self.time:.3f} s"
        colon = ":" if where or at else ""
        return f"{self.code}{where}{at}{colon} {self.what}" + (f" {self.hint}" if self.hint else "")

    def __reduce__(self):  # worker processes send errors home: keep the keyword fields
        return _rebuild, (type(self), self.what, self.file, self.time, self.hint)

    def as_dict(self) -> dict[str, object]:
        return {"code": self.code, "message": self.what, "file": self.file, "time": self.time, "hint": self.hint}


def _rebuild(cls: type[AvclError], what: str, file: str | None, time: float | None, hint: str) -> AvclError:
    return cls(what, file=file, time=time, hint=hint)


# ---------------------------------------------------------------------------------------------------- media (exit 4)
class MediaError(AvclError):
    """The base of everything that is wrong with a media file."""

    code, exit = "E-MEDIA", 4


class MissingFile(MediaError):
    """There is no such file, or it may not be read."""

    code = "E-NOFILE"


class NotMedia(MediaError):
    """The bytes are not a media file that can be opened or decoded (empty, a directory, a text file, garbage)."""

    code = "E-DECODE"


class NoAudioStream(MediaError):
    """Sound was asked of a file that has no audio stream."""

    code = "E-NOAUDIO"


class NoVideoStream(MediaError):
    """Pictures were asked of a file that has no video stream."""

    code = "E-NOVIDEO"


class Truncated(MediaError):
    """The file ends, or breaks, before the part that was asked for."""

    code = "E-TRUNCATED"


class Silent(MediaError):
    """The sound is digital silence (a warning unless the caller asks for strictness)."""

    code = "E-SILENT"


class TooShort(MediaError):
    """The stream is shorter than what was asked for."""

    code = "E-TOOSHORT"


# --------------------------------------------------------------------------------- usage, configuration, data (exit 2)
class ConfigError(AvclError):
    """An unknown key, a bad value, an expression that is not allowed."""

    code = "E-CONFIG"


class DataError(AvclError):
    """The data set cannot be read as what it claims to be: a missing column, an empty split, a bad row."""

    code = "E-DATA"


class LabelError(DataError):
    """A label that the data set or the model does not know."""

    code = "E-LABEL"


class LeakError(DataError):
    """The same group stands in more than one split; scores would be inflated."""

    code = "E-LEAK"


class FeatureError(DataError):
    """A feature array has non-finite values or a shape that does not fit."""

    code = "E-FEATURE"


class BatchError(AvclError):
    """The batch does not hold what the objective or system needs (a stream, labels, enough rows)."""

    code = "E-BATCH"


class ProtocolError(AvclError):
    """Two results of different protocols or data cannot be merged or compared."""

    code = "E-PROTOCOL"


class CapabilityError(AvclError):
    """The system cannot do what the task asks."""

    code = "E-CAPABILITY"


class RegionError(AvclError):
    """Regions of the picture that cannot be used: none was named, one is outside, two are the same."""

    code = "E-REGION"


class ExistsError(AvclError):
    """The output is already there and would be overwritten."""

    code = "E-EXISTS"


class LockedError(AvclError):
    """Another process is writing the same folder."""

    code = "E-LOCKED"


class DivergedError(AvclError):
    """Training produced a value that is not finite; the run was stopped and its last good checkpoint stands."""

    code = "E-NAN"
    exit = 1


class StoreError(AvclError):
    """A saved model, checkpoint or index is damaged or is not one."""

    code = "E-STORE"


class WorkerError(AvclError):
    """A worker process died (killed, or out of memory)."""

    code = "E-WORKER"


# ------------------------------------------------------------------------------------------------- extras and models
class ExtraError(AvclError):
    """An optional package is missing; the hint is the line that installs it."""

    code, exit = "E-EXTRA", 3


class LicenseError(AvclError):
    """Commercial use was asked for, and the weights are not known to allow it."""

    code = "E-LICENSE"


class ModelError(AvclError):
    """These vectors were made by another model or preprocessing; they cannot be compared."""

    code, exit = "E-MODEL", 5


def did_you_mean(word: str, known: list[str] | tuple[str, ...] | set[str]) -> str:
    """``Did you mean "x"?`` for the nearest known word, or the list of known words where none is near."""
    import difflib

    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f'Did you mean "{near[0]}"?' if near else f"Known: {', '.join(sorted(known))}."
