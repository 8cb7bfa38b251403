"""Media files on one clock: t = 0 is the first video frame. Every failure is one of ``avcl.errors``."""

from avcl.media.cut import segments
from avcl.media.decode import read_audio, read_clip, read_inputs, read_video
from avcl.media.encode import encode_image, remux_with_offset, write_audio, write_image, write_video
from avcl.media.files import AUDIO_SUFFIXES, IMAGE_SUFFIXES, MEDIA_SUFFIXES, VIDEO_SUFFIXES
from avcl.media.info import AudioInfo, MediaInfo, VideoInfo, probe
from avcl.media.sound import is_silent

__all__ = [
    "AUDIO_SUFFIXES",
    "IMAGE_SUFFIXES",
    "MEDIA_SUFFIXES",
    "VIDEO_SUFFIXES",
    "AudioInfo",
    "MediaInfo",
    "VideoInfo",
    "encode_image",
    "is_silent",
    "probe",
    "read_audio",
    "read_clip",
    "read_inputs",
    "read_video",
    "remux_with_offset",
    "segments",
    "write_audio",
    "write_image",
    "write_video",
]
