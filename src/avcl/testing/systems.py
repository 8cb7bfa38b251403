"""The contract of a System, as (name, check) pairs; ``for name, check in check_system(MySystem): check()``.

A check that a system's ``card.limits`` names must fail: a limit that no longer holds is an error too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path

import torch

from avcl import discover, store
from avcl.data import collate
from avcl.errors import BatchError, ConfigError
from avcl.loop.chunks import Cached, Chunks, Scratch
from avcl.seeds import seed_everything, seed_for, seeded
from avcl.system import Embeds, Step, System
from avcl.types import Batch, Clip, DataSpec, Inputs, Stream, StreamSpec

Check = Callable[[], None]
FEATURES = DataSpec(
    {"audio": StreamSpec("features", (12,), 1.0), "video": StreamSpec("features", (16,), 1.0)},
    labels=("a", "b", "c"),
    n_items=16,
)


def media_spec(inputs: Inputs) -> DataSpec:
    """What data decoded as ``inputs`` says look like."""
    sound = StreamSpec("audio", (inputs.channels,), float(inputs.sample_rate))
    picture = StreamSpec("video", (3, *inputs.size), float(inputs.fps))
    return DataSpec({"audio": sound, "video": picture}, labels=("a", "b", "c"), n_items=16)


def clips_of(spec: DataSpec, *, n: int = 8, seconds: float = 1.0, seed: int = 0) -> list[Clip]:
    """Random clips of that form; clip i has label i mod 3, and clips differ in length where the stream has a clock."""
    generator = torch.Generator().manual_seed(seed)
    clips = []
    for i in range(n):
        streams = {}
        for name, stream in spec.streams.items():
            steps = 1 if stream.kind == "features" else max(1, int(seconds * stream.rate) - i % 3)
            data = torch.randn(1, steps, *stream.shape, generator=generator) * (0.1 + i / n)
            data = data.sigmoid() if stream.kind == "video" else data
            streams[name] = Stream(data, torch.ones(1, steps, dtype=torch.bool), stream.rate)
        clips.append(Clip(str(i), streams, index=i, label=i % 3))
    return clips


def check_system(cls: type[System]) -> Iterator[tuple[str, Check]]:
    """Every check that applies to ``cls``, for features and for media."""
    yield "card", partial(_card, cls)
    yield "config", partial(_config, cls)
    config = cls.Config.tiny()
    for kind, spec in (("features", FEATURES), ("media", media_spec(cls.inputs(config)))):
        for check in (_losses, _gradient, _determinism, _store, _embedding, _padding, _order, _one_modality, _cache):
            name = check.__name__.removeprefix("_")
            yield f"{kind}-{name}", partial(_with_limits, cls, name, partial(check, cls, spec))


def _with_limits(cls: type[System], name: str, check: Check) -> None:
    if name not in cls.card.limits:
        return check()
    try:
        check()
    except AssertionError:
        return None
    raise AssertionError(f"{cls.__name__} declares the limit {name!r}, but the check passes: remove the limit.")


def _made(cls: type[System], spec: DataSpec, *, fitted: bool = True) -> System:
    with seeded(0, "init"):
        system = cls(cls.Config.tiny(), spec)
    if cls.closed_form and fitted:
        system.finish([collate(clips_of(spec, n=24))])
    return system.eval()


def _step() -> Step:
    return Step(0, 10, 0, 0.0, torch.Generator().manual_seed(0))


def _card(cls: type[System]) -> None:
    assert cls.card.title
    assert cls.card.year
    assert cls.card.fidelity, "the card says how faithful this is"
    assert (cls.__doc__ or "").strip()


def _config(cls: type[System]) -> None:
    assert is_dataclass(cls.Config)
    assert cls.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    config = cls.Config.tiny()
    plain = {f.name: getattr(config, f.name) for f in fields(config)}
    assert cls.Config.from_json(plain) == config
    assert cls.Config.from_json({k: str(v) if not isinstance(v, tuple) else v for k, v in plain.items()}) == config


def _losses(cls: type[System], spec: DataSpec) -> None:
    system, batch = _made(cls, spec), collate(clips_of(spec))
    terms, _ = system(batch, _step())
    assert terms
    for name, value in terms.items():
        assert value.ndim == 0, name
        assert bool(torch.isfinite(value)), name


def _gradient(cls: type[System], spec: DataSpec) -> None:
    system, batch = _made(cls, spec).train(), collate(clips_of(spec))
    parameters = dict(system.named_parameters())
    assert parameters, "nothing to train"
    torch.stack(list(system(batch, _step())[0].values())).sum().backward()
    without = [name for name, p in parameters.items() if p.requires_grad and (p.grad is None or not bool(p.grad.any()))]
    assert not without, f"no gradient reaches {', '.join(without)}"


def _determinism(cls: type[System], spec: DataSpec) -> None:
    batch = collate(clips_of(spec))
    first, second = (_made(cls, spec).encode(batch) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def _store(cls: type[System], spec: DataSpec) -> None:
    system, batch = _made(cls, spec), collate(clips_of(spec))
    with tempfile.TemporaryDirectory() as folder:
        inputs = cls.inputs(system.config)
        store.save(system, Path(folder) / "model", inputs=inputs, meta={"note": "kept"})
        saved = store.load(Path(folder) / "model")
    assert type(saved.system) is discover.system_class(discover.system_name(cls))
    assert (saved.inputs, saved.meta["note"]) == (inputs, "kept")
    before, after = system.encode(batch), saved.system.eval().encode(batch)
    assert all(torch.equal(before[name], after[name]) for name in before)


def _embedded(system: System, batch: Batch, modality: str) -> torch.Tensor:
    assert isinstance(system, Embeds)
    return system.embed(batch.without(*(n for n in batch.streams if n != modality)), modality)


def _embedding(cls: type[System], spec: DataSpec) -> None:
    system, batch = _made(cls, spec), collate(clips_of(spec))
    if not isinstance(system, Embeds):
        return
    both = [_embedded(system, batch, name) for name in spec.streams]
    for z in both:
        assert z.dtype == torch.float32
        assert z.shape == (len(batch), both[0].shape[1])
        assert bool(torch.isfinite(z).all())
        assert bool((z.std(0) > 0).any()), "every clip gets the same embedding"
    assert system.similarity(*both).shape == (len(batch), len(batch))


def _padding(cls: type[System], spec: DataSpec) -> None:
    """Zeros behind the end, masked, change nothing."""
    system, clips = _made(cls, spec), clips_of(spec)
    if not isinstance(system, Embeds):
        return
    for name in spec.streams:
        for i in (0, 2):
            alone = _embedded(system, collate([clips[i]]), name)[0]
            among = _embedded(system, collate(clips), name)[i]
            torch.testing.assert_close(alone, among, atol=2e-5, rtol=1e-4)


def _order(cls: type[System], spec: DataSpec) -> None:
    """Batch order does not matter."""
    system, clips = _made(cls, spec), clips_of(spec)
    if not isinstance(system, Embeds):
        return
    for name in spec.streams:
        forward, backward = (_embedded(system, collate(c), name) for c in (clips, clips[::-1]))
        torch.testing.assert_close(forward, backward.flip(0), atol=2e-5, rtol=1e-4)


def _cache(cls: type[System], spec: DataSpec) -> None:
    """``micro_batch``: losses and gradients of a batch in chunks are those of the chunks in one graph, and, where
    nothing is drawn at random and no statistics are taken, of the whole batch."""
    if cls.closed_form:
        return
    clips = clips_of(spec, n=7)
    parts = [collate(clips[at : at + 3]) for at in (0, 3)] + [collate(clips[6:])]
    for training in (True, False):
        one, two = (_made(cls, spec).train(training) for _ in range(2))
        some = parts[:2] if training else parts  # a chunk of one clip has no statistics
        found, cached = _in_chunks(two, some)
        terms, gradients = _in_one_graph(one, some)
        _same("the loss", found, terms)
        _same("the gradient of", cached, gradients)
        _same("the buffer", dict(two.named_buffers()), dict(one.named_buffers()))
    whole = collate(clips)
    seed_everything(0)
    drawn, again = _made(cls, spec).encode(whole), _made(cls, spec).encode(whole)
    if all(torch.equal(drawn[name], again[name]) for name in drawn):
        seed_everything(seed_for(0, "losses"))
        _same("the loss", found, _made(cls, spec)(whole, _step())[0])


def _in_chunks(system: System, parts: list[Batch]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    scratch, parameters = Scratch(), [p for p in system.parameters() if p.requires_grad]
    try:
        cached = Cached(system, Chunks(iter(parts), count=len(parts), scratch=scratch), seed=0)
        encoded, batch = cached.encode()
        terms = dict(system.losses(encoded, batch, _step()))
        cached.backward(torch.stack(list(terms.values())).sum(), parameters)
    except (BatchError, ConfigError) as error:
        raise AssertionError(f"the loss cannot be taken over embeddings alone: {error}") from error
    finally:
        scratch.close()
    return terms, _gradients(system)


def _in_one_graph(system: System, parts: list[Batch]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    first, encoded = 0, []
    for part in parts:
        seed_everything(seed_for(0, "row", first))
        encoded.append(system.encode(part))
        first += len(part)
    whole = collate(clips_of(system.spec, n=7)[:first])
    seed_everything(seed_for(0, "losses"))
    terms = dict(system.losses({n: torch.cat([part[n] for part in encoded]) for n in encoded[0]}, whole, _step()))
    torch.stack(list(terms.values())).sum().backward()
    return terms, _gradients(system)


def _gradients(system: System) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in system.named_parameters() if p.grad is not None}


def _same(what: str, one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys(), f"{what}: {sorted(one.keys() ^ two.keys())}"
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-5, rtol=1e-4), f"{what} {name} is another one in chunks"


def _one_modality(cls: type[System], spec: DataSpec) -> None:
    """A clip whose stream holds nothing at all has an embedding without NaN."""
    system, clip = _made(cls, spec), clips_of(spec, n=1)[0]
    if not isinstance(system, Embeds):
        return
    for name, stream in clip.streams.items():
        blank = Stream(torch.zeros_like(stream.data), torch.zeros_like(stream.mask), stream.rate)
        z = _embedded(system, collate([Clip("0", {name: blank})]), name)
        assert bool(torch.isfinite(z).all())
