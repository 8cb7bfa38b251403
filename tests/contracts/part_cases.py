"""How every public part of ``avcl.encoders`` and ``avcl.nn`` is built and used by the contract, or why it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from avcl.encoders import autoregressive, conv3d, decoders, patches, recurrent, resnet, text, unet, vggish, waveform
from avcl.encoders.audio import LogMelConv
from avcl.encoders.clip_perceptron import ClipPerceptron
from avcl.encoders.clip_vector import ClipVector
from avcl.encoders.conv2d import ChangeConv, FrameConv
from avcl.encoders.faces import PlacedConv
from avcl.encoders.mlp import MLP
from avcl.encoders.segments import CellConv
from avcl.encoders.skeleton import SkeletonConv
from avcl.encoders.spoken import ResDAVEnet
from avcl.encoders.tokens import TokenConv
from avcl.nn import (
    aggregation,
    attention,
    coattention,
    context,
    memory_attention,
    positions,
    regions,
    self_and_co,
    transformer,
    translation,
)
from avcl.types import Kind, Stream, StreamSpec


@dataclass(frozen=True)
class Input:
    """One input: kind, shape of a step, steps a second, and between how many steps it has."""

    kind: Kind
    shape: tuple[int, ...] = ()
    rate: float = 2.0
    least: int = 1
    most: int = 12


@dataclass(frozen=True)
class Case:
    """How a part is built and used; a part of tensors has a ``call`` that takes and gives Streams."""

    make: Callable[[], nn.Module]
    inputs: tuple[Input, ...]
    call: Callable[..., Any] | None = None
    limits: Mapping[str, str] = field(default_factory=dict)


def features(dim: int = 6, rate: float = 2.0) -> Input:
    return Input("features", (dim,), rate)


X, Y = features(), features(rate=3.0)
MAP = Input("map", (2, 3, 6))
CELLS = Input("map", (2, 3, 6), 3.0)
SOUND = Input("audio", (1,), 8000.0, least=2000, most=4100)
PICTURES = Input("video", (3, 20, 24), 8.0, least=1, most=8)
TOKENS = Input("tokens", (), 1.0)
SPECTRUM = Input("spectrum", (16, 1), 16.0, least=9, most=20)
SMALL = {"widths": (4, 6), "depths": (1, 1), "strides": (1, 2)}


def zeroed(stream: Stream, data: Tensor) -> Stream:
    """``data`` on the clock of the stream, zeros where nothing was recorded."""
    return stream._replace(data=data * stream.mask.reshape(*stream.mask.shape, *[1] * (data.ndim - 2)))


def pooled(module: nn.Module, stream: Stream) -> Tensor:
    return module(stream.data, stream.mask)


def attended(module: nn.Module, x: Stream, y: Stream) -> Stream:
    return zeroed(x, module(zeroed(x, x.data).data, zeroed(y, y.data).data, mask=y.mask)[0])


def alone(module: nn.Module, stream: Stream) -> Stream:
    return zeroed(stream, module(stream.data, mask=stream.mask)[0])


def first(module: nn.Module, *streams: Stream) -> Tensor:
    return module(*streams)[0]


def halves(module: nn.Module, stream: Stream) -> Any:
    """Two inputs of one clock and mask: a part that takes no others."""
    return module(*(stream._replace(data=part) for part in stream.data.chunk(2, 2)))


def vector(module: nn.Module, stream: Stream, condition: Stream) -> Stream:
    """A condition that is a vector for the clip."""
    return module(stream, (condition.data * condition.mask[:, :, None]).sum(1))


ENCODERS: dict[str, Case] = {
    "MLP": Case(lambda: MLP(6, hidden=8, dim=4, dropout=0.1), (X,)),
    "MLP: map": Case(lambda: MLP(6, hidden=8, dim=4, depth=2), (MAP,)),
    "ClipPerceptron": Case(
        lambda: ClipPerceptron(StreamSpec("features", (6,), 2.0), hidden=(8,), dim=4, activation="gelu"),
        (X,),
        limits={"order": "normalizes its inputs over the batch"},
    ),
    "ClipVector: sound": Case(
        lambda: ClipVector(StreamSpec("audio", (1,), 8000.0), seconds=0.5, frames=2), (SOUND,)
    ),
    "ClipVector: pictures": Case(
        lambda: ClipVector(StreamSpec("video", (3, 20, 24), 8.0), seconds=1.0, frames=2), (PICTURES,)
    ),
    "TokenConv": Case(lambda: TokenConv(8, dim=8), (TOKENS,)),
    "FrameConv": Case(lambda: FrameConv((4, 6, 8)), (PICTURES,)),
    "PlacedConv": Case(lambda: PlacedConv((20, 24), dim=6, widths=(4, 6)), (PICTURES,)),
    "ChangeConv": Case(lambda: ChangeConv(dim=8, widths=(4, 6)), (PICTURES,)),
    "CellConv": Case(lambda: CellConv((4, 6, 8)), (PICTURES,)),
    "LogMelConv": Case(lambda: LogMelConv(dim=8, bands=16, widths=(4, 4, 6)), (SOUND,)),
    "FrameResNet": Case(lambda: resnet.FrameResNet(**SMALL), (PICTURES,)),
    "FrameResNet: bottleneck": Case(lambda: resnet.FrameResNet(**SMALL, bottleneck=True, pool=False), (PICTURES,)),
    "FrameResNet: batch": Case(
        lambda: resnet.FrameResNet(**SMALL, norm="batch"),
        (PICTURES,),
        limits={"order": "the batch norm of the paper takes its statistics over all clips"},
    ),
    "SpectrumResNet": Case(lambda: resnet.SpectrumResNet(**SMALL), (SPECTRUM,)),
    "ResDAVEnet": Case(lambda: ResDAVEnet(bands=16, widths=(4, 6), depths=(1, 1), kernel=3), (SOUND,)),
    "LogMelResNet": Case(lambda: resnet.LogMelResNet(**SMALL, bands=16), (SOUND,)),
    # From two frames on: of one alone torch 2.13 makes wrong numbers in bfloat16 on a processor (3-D convolution).
    "VideoResNet": Case(lambda: conv3d.VideoResNet(**SMALL), (replace(PICTURES, least=2),)),
    "VideoResNet: factorized": Case(lambda: conv3d.VideoResNet(**SMALL, factorized=True), (PICTURES,)),
    "VideoTransformer": Case(lambda: patches.VideoTransformer(dim=8, heads=2, depth=1), (PICTURES,)),
    "VideoTransformer: tubelets": Case(
        lambda: patches.VideoTransformer(dim=8, heads=2, depth=1, tubelet=2, mixing="factorized", readout="mean"),
        (PICTURES,),
    ),
    "SpectrogramTransformer": Case(
        lambda: patches.SpectrogramTransformer(dim=8, heads=2, depth=1, bands=32), (SOUND,)
    ),
    "WaveformConv": Case(lambda: waveform.WaveformConv(((6, 10, 5, 1), (8, 8, 4, 2))), (replace(SOUND, most=2500),)),
    "VGGish": Case(
        lambda: vggish.VGGish(widths=(4, 4, 4, 4, 4, 4), hidden=(8, 8), dim=8), (replace(SOUND, most=9000),)
    ),
    "Recurrent": Case(lambda: recurrent.Recurrent(6, hidden=4, learned_start=True), (X,)),
    "Recurrent: lstm": Case(lambda: recurrent.Recurrent(6, hidden=4, cell="lstm", depth=2, dropout=0.1), (X,)),
    "TCN": Case(lambda: recurrent.TCN(6, dim=8, depth=2), (X,)),
    "TCN: causal": Case(lambda: recurrent.TCN(6, dim=8, depth=2, causal=True), (X,)),
    "TextTransformer": Case(lambda: text.TextTransformer(8, dim=8, heads=2, depth=1), (TOKENS,)),
    "TextTransformer: relative": Case(
        lambda: text.TextTransformer(8, dim=8, heads=2, depth=1, positions="relative"), (TOKENS,)
    ),
    "TextRecurrent": Case(lambda: text.TextRecurrent(8, width=6, hidden=4), (TOKENS,)),
    "CharConv": Case(lambda: text.CharConv(8, dim=8, width=6), (TOKENS,)),
    "SentenceEmbedding": Case(lambda: text.SentenceEmbedding(TokenConv(8, dim=8), 6), (TOKENS,)),
    "SentenceEmbedding: attention": Case(
        lambda: text.SentenceEmbedding(TokenConv(8, dim=8), 6, pool="attention"), (TOKENS,)
    ),
    "TokenTable": Case(lambda: text.TokenTable(8, 6), (TOKENS,)),
    "UNet": Case(lambda: unet.UNet(widths=(4, 6)), (SPECTRUM,)),
    "UNet: film": Case(lambda: unet.UNet(widths=(4, 6), condition="film", condition_dim=6), (SPECTRUM, X)),
    "UNet: concat": Case(lambda: unet.UNet(widths=(4, 6), condition="concat", condition_dim=6), (SPECTRUM, X), vector),
    "UNet: attention": Case(
        lambda: unet.UNet(widths=(4, 6), condition="attention", condition_dim=6, heads=2), (SPECTRUM, CELLS)
    ),
    "UNet: product": Case(lambda: unet.UNet(widths=(4, 6), condition="product", condition_dim=6), (SPECTRUM, X)),
    "VideoDecoder": Case(
        lambda: decoders.VideoDecoder(6, size=(8, 12), hidden=8, depth=1, widths=(6, 4), per_step=2), (X,)
    ),
    "SpectrogramDecoder": Case(
        lambda: decoders.SpectrogramDecoder(6, bands=12, per_step=2, widths=(6, 4)), (X,)
    ),
    "WaveformDecoder": Case(lambda: decoders.WaveformDecoder(6, strides=(4, 2), width=8), (X,)),
    "EventDecoder": Case(
        lambda: autoregressive.EventDecoder(8, memory_dim=6, width=8, heads=2, depth=1), (TOKENS, X)
    ),
    "EventDecoder: timed": Case(
        lambda: autoregressive.EventDecoder(8, memory_dim=6, width=8, heads=2, depth=1, durations=[0.1] * 8),
        (TOKENS, X),
    ),
    "SkeletonConv": Case(lambda: SkeletonConv(3, widths=(4, 6), strides=(1, 2), dim=8, reach=3, dropout=0.1), (X,)),
    "EventDecoder: gru": Case(
        lambda: autoregressive.EventDecoder(8, memory_dim=6, width=8, heads=2, depth=1, core="gru"), (TOKENS, X)
    ),
}  # fmt: skip

PARTS: dict[str, Case] = {
    "AttentionPool": Case(lambda: aggregation.AttentionPool(6, heads=2, hidden=4), (X,), pooled),
    "AttentionPool: gated": Case(lambda: aggregation.AttentionPool(6, hidden=4, gated=True), (X,), pooled),
    "NetVLAD": Case(lambda: aggregation.NetVLAD(6, 3), (X,), pooled),
    "NetVLAD: map": Case(lambda: aggregation.NetVLAD(6, 3, reduce=5, tied=True), (MAP,), pooled),
    **{
        f"MILPool: {kind}": Case(lambda kind=kind: aggregation.MILPool(6, kind), (X,), pooled)
        for kind in ("max", "mean", "top-k", "linear-softmax", "attention", "noisy-or")
    },
    "GeneralizedMeanPool": Case(lambda: aggregation.GeneralizedMeanPool(6), (X,), pooled),
    **{
        f"MultiHeadAttention: {name}": Case(
            lambda name=name: attention.MultiHeadAttention(6, heads=2, score=name, dropout=0.1), (X, Y), attended
        )
        for name in ("scaled_dot", "dot", "additive", "bilinear", "cosine")
    },
    "TransformerLayer": Case(lambda: transformer.TransformerLayer(6, heads=2), (X,), alone),
    "TransformerEncoder": Case(lambda: transformer.TransformerEncoder(8, features=6, heads=2, depth=1), (X,)),
    "TransformerEncoder: relative": Case(
        lambda: transformer.TransformerEncoder(6, heads=2, depth=1, positions="relative", norm="post"), (X,)
    ),
    "TransformerEncoder: agg": Case(
        lambda: transformer.TransformerEncoder(6, heads=2, depth=1, agg=True, positions="learned"), (X,)
    ),
    "TransformerEncoder: causal": Case(
        lambda: transformer.TransformerEncoder(6, heads=2, depth=1, causal=True, positions="none"), (X,)
    ),
    "TransformerDecoder": Case(
        lambda: transformer.TransformerDecoder(8, features=6, memory_features=6, heads=2, depth=1), (X, Y)
    ),
    "CrossModalTransformer": Case(lambda: transformer.CrossModalTransformer(6, heads=2, depth=1), (X, Y)),
    "CrossModalTransformer: keys": Case(
        lambda: transformer.CrossModalTransformer(6, heads=2, depth=2, update_keys=True), (X, Y)
    ),
    "SetTranslator": Case(lambda: translation.SetTranslator(6, depth=1), (X,)),
    **{
        f"SelfCoBlock: {order}": Case(
            lambda order=order: self_and_co.SelfCoBlock(6, heads=2, order=order), (X, Y)
        )
        for order in ("self_then_co", "co_then_self", "parallel_sum", "joint")
    },
    "SecondsEncoding": Case(lambda: positions.SecondsEncoding(6), (X,)),
    "SecondsEncoding: learned": Case(lambda: positions.SecondsEncoding(6, kind="learned", longest=10.0), (X,)),
    "MapPositions": Case(lambda: positions.MapPositions(6, height=2, width=3, longest=10.0), (MAP,)),
    "ModalityEmbedding": Case(
        lambda: positions.ModalityEmbedding(6, modalities=2), (X, Y), lambda m, x, y: (m(x, 0), m(y, 1))
    ),
    "CrossAttention": Case(lambda: coattention.CrossAttention(6, heads=2, gate=True, positions=True), (X, Y)),
    "CrossAttention: window": Case(lambda: coattention.CrossAttention(6, heads=2, past=1.0, future=0.5), (X, Y)),
    "PairCoAttention": Case(lambda: coattention.PairCoAttention(6, heads=2), (X, Y)),
    "PairCoAttention: alternating": Case(
        lambda: coattention.PairCoAttention(6, heads=2, order="alternating", gate=True), (X, Y)
    ),
    "AffinityCoAttention": Case(lambda: coattention.AffinityCoAttention(6), (X, Y)),
    "JointCoAttention": Case(lambda: coattention.JointCoAttention(6), (features(12),), halves),
    "JointCoAttention: conv": Case(lambda: coattention.JointCoAttention(6, keys="conv"), (features(12),), halves),
    "MultiPairCoAttention": Case(
        lambda: coattention.MultiPairCoAttention(6, 3, heads=2, mixing="softmax"),
        (X, Y, features(rate=1.0)),
        lambda m, *streams: m(streams),
    ),
    "MultiScaleAttention": Case(lambda: context.MultiScaleAttention(6, heads=2), (X, Y)),
    "MultiScaleAttention: mix": Case(lambda: context.MultiScaleAttention(6, heads=2, merge="mix"), (X, Y)),
    "RegionAttention": Case(lambda: regions.RegionAttention(6, 6, hidden=4), (X, CELLS)),
    "AudioGuidedAttention": Case(lambda: regions.AudioGuidedAttention(6, 6, hidden=4, units=6), (X, CELLS)),
    "RegionSelfAttention": Case(lambda: regions.RegionSelfAttention(6, heads=2), (MAP,)),
    "InstanceAttention": Case(lambda: regions.InstanceAttention(6, 6, heads=2, hidden=4), (X, CELLS)),
    "RegionCoAttention": Case(lambda: regions.RegionCoAttention(6, heads=2), (X, CELLS)),
    "SlowFastAttention": Case(lambda: regions.SlowFastAttention(6, 6, 6, dim=4, hidden=4), (X, MAP, CELLS)),
    "ProjectorCoAttention": Case(lambda: regions.ProjectorCoAttention(6, 6, hidden=4), (CELLS, X), first),
    "MemoryAttention": Case(lambda: memory_attention.MemoryAttention(6, heads=2, slots=3, segment=4), (X,)),
    "MemoryAttention: context": Case(
        lambda: memory_attention.MemoryAttention(6, context_dim=6, heads=2, slots=3, segment=4), (X, Y)
    ),
    "MemoryAttention: bidirectional": Case(
        lambda: memory_attention.MemoryAttention(6, heads=2, slots=3, segment=4, bidirectional=True), (X,)
    ),
    "MemoryStack": Case(
        lambda: memory_attention.MemoryStack(
            [memory_attention.MemoryAttention(6, heads=2, slots=3, segment=4, causal=True) for _ in range(2)]
        ),
        (X,),
    ),
}  # fmt: skip

# By "Class" or "Class: how".
CASES = {**ENCODERS, **PARTS}

INSIDE = "a part of another part, which has a case; it works on tensors"
LOSSES = "makes latents, reconstructions and terms of several modalities; tests/unit/test_nn_*.py"
JUDGES = "gives a Verdict for a clip, not a sequence; tests/unit/test_nn_discriminators.py"
# Public modules that have no case, and why.
OTHERS: dict[str, str] = {
    "ChannelNorm": "a norm of tensors of any rank, without a clock",
    "PictureTower": "gives a pooled vector and a sequence; made of FrameConv and ChangeConv, which have cases",
    "SoundTower": "gives a pooled vector and a sequence; made of LogMelConv, which has a case",
    "CanonicalPair": "two networks and a closed form; tests/unit/test_encoders_clip_perceptron.py",
    "ClusterCCA": "a closed form of vectors without parameters; tests/unit/test_nn_canonical.py",
    "WhatWhen": "takes a pooled vector and a sequence; tests/unit/test_encoders.py has its equation",
    "Tower": "the base of pretrained towers, which tests/unit/test_pretrained.py holds to the contract",
    "PictureDecoder": "one latent to one picture, no clock; VideoDecoder is made of it",
    **dict.fromkeys(("KeptAttention", "EventLayer", "DilatedStack", "TimeMix", "PatchTransformer"), INSIDE),
    **dict.fromkeys(("ResidualBlock", "ResidualTrunk", "Score", "FeedForward", "Entrance", "ResidualGate"), INSIDE),
    **dict.fromkeys(("SlotMemory", "Beside", "FiLM", "CrossAttentionCondition", "Gate"), INSIDE),
    "RelativeBias": "a bias of scores between two clocks, no encoding of a stream",
    "DropToken": "moves steps, so that the clock no longer holds, and is the identity in evaluation",
    "VectorQuantizer": "piecewise constant with its gradient passed straight through",
    **dict.fromkeys(("CrossReconstruction", "LatentPrediction"), LOSSES),
    **dict.fromkeys(("VAE", "ConditionalVAE", "ConstrainedAE", "LatentClassification", "MultimodalVAE"), LOSSES),
    **dict.fromkeys(("QuantizedAE", "SharedLatent", "ConcatAE", "AttentionSharedLatent"), LOSSES),
    **dict.fromkeys(
        ("VectorDiscriminator", "SequenceDiscriminator", "PatchDiscriminator", "WaveDiscriminator"), JUDGES
    ),
    **dict.fromkeys(("PeriodDiscriminator", "MultiScaleDiscriminator", "MultiPeriodDiscriminator"), JUDGES),
    **dict.fromkeys(("MaskedConvs", "Head", "Conditioned"), JUDGES),
    "ModalityAdversary": "a game between players; tests/unit/test_nn_adversary.py",
    "GradientBalance": "a weight of two losses; tests/unit/test_nn_adversary.py",
    "SegmentTowers": "a clip to a fixed number of segments, whatever its length; tests/unit/test_systems_events.py",
    **dict.fromkeys(("EventTerms", "SegmentMatch"), "losses of segments; tests/unit/test_systems_events.py"),
    "Standardize": "a scale of columns without parameters or a clock; tests/unit/test_sew.py",
    "FrozenClassifier": "what another module says, without a clock of its own",
    "Spelling": "takes words, not a stream; tests/unit/test_encoders_phrases.py",
}
