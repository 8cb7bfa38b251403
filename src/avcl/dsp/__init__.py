"""Signals and pictures as tensors: spectra, resampling, resizing. Knows no files."""

from avcl.dsp.picture import resize
from avcl.dsp.rates import resample
from avcl.dsp.spectrum import log_mel, mel_filters, stft

__all__ = ["log_mel", "mel_filters", "resample", "resize", "stft"]
