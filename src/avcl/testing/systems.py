"""The contract of a System, as (name, check) pairs; ``for name, check in check_system(MySystem): check()``.

A check that a system's ``card.limits`` names must fail: a limit that no longer holds is an error too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch

from avcl import discover, store, trials
from avcl.data import collate
from avcl.errors import BatchError, ConfigError
from avcl.loop.chunks import Cached, Chunks, Scratch
from avcl.seeds import seed_everything, seed_for, seeded
from avcl.system import Embeds, Step, System
from avcl.task import Task, checked
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


def world_clips(cls: type[System]) -> list[Clip]:
    """Eight clips of the system's trial with all their truth, a few steps shorter here and there."""
    return list(_world_clips(cls))


@cache
def _world_clips(cls: type[System]) -> tuple[Clip, ...]:
    _, trial = trials.trial_of(cls)
    data = trials.world_of(trial, clips=8, split="val").configure(cls.inputs(cls.Config.tiny()))
    return tuple(_cut(data.clip(i), i % 3) for i in range(8))


def _cut(clip: Clip, share: int) -> Clip:
    """Without the last ``share`` sixteenths of every stream."""
    streams = {}
    for name, stream in clip.streams.items():
        steps = max(1, stream.data.shape[1] * (16 - share) // 16)
        streams[name] = Stream(stream.data[:, :steps], stream.mask[:, :steps], stream.rate)
    return replace(clip, streams=streams)


def subject_of(cls: type[System], kind: str) -> tuple[DataSpec, Callable[..., list[Clip]]]:
    """What a system is checked with: what the data look like, and clips of it (``n`` of them)."""
    if kind == "features":
        return FEATURES, partial(clips_of, FEATURES)
    if cls.trial is None:
        spec = media_spec(cls.inputs(cls.Config.tiny()))
        return spec, partial(clips_of, spec)
    inputs = cls.inputs(cls.Config.tiny())
    spec = trials.world_of(cls.trial, clips=8, split="val").configure(inputs).spec

    def some(n: int = 8) -> list[Clip]:
        clips = world_clips(cls)
        return [replace(clips[i % 8], id=str(i), index=i) for i in range(n)]

    return spec, some


def check_system(cls: type[System], *, short: bool = True) -> Iterator[tuple[str, Check]]:
    """Every check that applies to ``cls``, for features and for media; with ``short`` also the short form of its trial:
    ten seconds in which the loss must fall and another clip's partner must cost more.
    """
    yield "card", partial(_card, cls)
    yield "config", partial(_config, cls)
    checks = (_losses, _gradient, _determinism, _store, _embedding, _padding, _order, _one_modality, _cache)
    for kind in cls.learns_from:
        for check in checks if kind == "features" or cls.trial is None else (*checks, _answers):
            name = check.__name__.removeprefix("_")
            yield f"{kind}-{name}", partial(_with_limits, cls, name, partial(check, cls, kind))
    if short and cls.trial is not None and not cls.closed_form:
        yield "short", partial(_with_limits, cls, "short", partial(_short, cls))


def check_trial(cls: type[System], *, seeds: tuple[int, ...] = (0, 1)) -> Iterator[tuple[str, Check]]:
    """The whole trial, minutes a seed: trained on the world, the interval of the deciding metric must lie beyond chance
    and beyond that of every control, within four minutes of training."""
    for seed in seeds:
        yield f"trial-{seed}", partial(_trial, cls, seed)


def _trial(cls: type[System], seed: int) -> None:
    done = trials.run(cls, seed=seed)
    assert not done.report.not_beaten(), f"not above {', '.join(done.report.not_beaten())}:\n{done.report.table()}"


def _short(cls: type[System]) -> None:
    found = trials.run_short(cls)
    assert found.last < found.first, f"the loss does not fall: {found}"
    assert found.right < found.wrong, f"another clip's partner costs no more: {found}"


def _answers(cls: type[System], kind: str) -> None:
    """What the trial's task asks: one finite row a clip, the same for clips in reverse order."""
    assert cls.trial is not None
    if cls.trial.task == "retrieval":
        return
    task = discover.task_class(cls.trial.task)(**cls.trial.protocol)
    system = _made(cls, kind)
    task.require(system)
    world = trials.world_of(cls.trial, clips=6, split="val").configure(cls.inputs(system.config))
    items = task.items(world)  # as many as the task makes of them: two clips are one mixture
    clips = [items.clip(i) for i in range(len(items))]
    forward, backward = (_answered(task, system, collate(c)) for c in (clips, clips[::-1]))
    for name, value in forward.items():
        torch.testing.assert_close(value.float(), backward[name].flip(0).float(), atol=1e-4, rtol=1e-3)


@torch.no_grad()
def _answered(task: Task, system: System, batch: Batch) -> dict[str, torch.Tensor]:
    found = task.answer(system, task.shown(batch).to("cpu"))
    assert set(task.truth(batch)).isdisjoint(found), "an answer has the name of a truth"
    return {name: checked(name, value, batch) for name, value in found.items()}


def _with_limits(cls: type[System], name: str, check: Check) -> None:
    if name not in cls.card.limits:
        return check()
    try:
        check()
    except AssertionError:
        return None
    raise AssertionError(f"{cls.__name__} declares the limit {name!r}, but the check passes: remove the limit.")


def _made(cls: type[System], kind: str, *, fitted: bool = True) -> System:
    spec, clips = subject_of(cls, kind)
    with seeded(0, "init"):
        system = cls(cls.Config.tiny(), spec)
    if cls.closed_form and fitted:
        system.finish([collate(clips(n=24)).to("cpu")])
    elif fitted:  # as the loop does before the first step
        with torch.no_grad(), seeded(0, "begin"):
            system.begin_epoch([collate(clips(n=8)).to("cpu")], 0)
    return system.eval()


def _clips(cls: type[System], kind: str, n: int = 8) -> list[Clip]:
    return subject_of(cls, kind)[1](n=n)


def _batch(clips: list[Clip]) -> Batch:
    """Side by side, pictures as the loop hands them over: float32 in [0, 1]."""
    return collate(clips).to("cpu")


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


def _losses(cls: type[System], kind: str) -> None:
    system, batch = _made(cls, kind), _batch(_clips(cls, kind))
    terms, _ = system(batch, _step())
    assert terms
    for name, value in terms.items():
        assert value.ndim == 0, name
        assert bool(torch.isfinite(value)), name


def _gradient(cls: type[System], kind: str) -> None:
    system, batch = _made(cls, kind).train(), _batch(_clips(cls, kind))
    parameters = dict(system.named_parameters())
    assert parameters, "nothing to train"
    torch.stack(list(system(batch, _step())[0].values())).sum().backward()
    without = [name for name, p in parameters.items() if p.requires_grad and (p.grad is None or not bool(p.grad.any()))]
    assert not without, f"no gradient reaches {', '.join(without)}"


def _determinism(cls: type[System], kind: str) -> None:
    batch = _batch(_clips(cls, kind))
    first, second = (_made(cls, kind).encode(batch) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def _store(cls: type[System], kind: str) -> None:
    system, batch = _made(cls, kind), _batch(_clips(cls, kind))
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


def _embedding(cls: type[System], kind: str) -> None:
    system, batch = _made(cls, kind), _batch(_clips(cls, kind))
    if not isinstance(system, Embeds):
        return
    both = [_embedded(system, batch, name) for name in subject_of(cls, kind)[0].streams]
    for z in both:
        assert z.dtype == torch.float32
        assert z.shape == (len(batch), both[0].shape[1])
        assert bool(torch.isfinite(z).all())
        assert bool((z.std(0) > 0).any()), "every clip gets the same embedding"
    for other in both[1:]:
        assert system.similarity(both[0], other).shape == (len(batch), len(batch))


def _padding(cls: type[System], kind: str) -> None:
    """Zeros behind the end, masked, change nothing."""
    system, clips = _made(cls, kind), _clips(cls, kind)
    if not isinstance(system, Embeds):
        return
    for name in subject_of(cls, kind)[0].streams:
        for i in (0, 2):
            alone = _embedded(system, _batch([clips[i]]), name)[0]
            among = _embedded(system, _batch(clips), name)[i]
            torch.testing.assert_close(alone, among, atol=2e-5, rtol=1e-4)


def _order(cls: type[System], kind: str) -> None:
    """Batch order does not matter."""
    system, clips = _made(cls, kind), _clips(cls, kind)
    if not isinstance(system, Embeds):
        return
    for name in subject_of(cls, kind)[0].streams:
        forward, backward = (_embedded(system, _batch(c), name) for c in (clips, clips[::-1]))
        torch.testing.assert_close(forward, backward.flip(0), atol=2e-5, rtol=1e-4)


def _cache(cls: type[System], kind: str) -> None:
    """``micro_batch``: losses and gradients of a batch in chunks are those of the chunks in one graph, and, where
    nothing is drawn at random and no statistics are taken, of the whole batch."""
    if cls.closed_form:
        return
    clips = _clips(cls, kind, n=7)
    parts = [_batch(clips[at : at + 3]) for at in (0, 3)] + [_batch(clips[6:])]
    for training in (True, False):
        one, two = (_made(cls, kind).train(training) for _ in range(2))
        some = parts[:2] if training else parts  # a chunk of one clip has no statistics
        found, cached = _in_chunks(two, some)
        terms, gradients = _in_one_graph(one, some)
        _same("the loss", found, terms)
        _same("the gradient of", cached, gradients)
        _same("the buffer", dict(two.named_buffers()), dict(one.named_buffers()))
    whole = _batch(clips)
    seed_everything(0)
    drawn, again = _made(cls, kind).encode(whole), _made(cls, kind).encode(whole)
    if all(torch.equal(drawn[name], again[name]) for name in drawn):
        seed_everything(seed_for(0, "losses"))
        _same("the loss", found, _made(cls, kind)(whole, _step())[0])


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
    whole = _joined(parts)
    seed_everything(seed_for(0, "losses"))
    terms = dict(system.losses({n: torch.cat([part[n] for part in encoded]) for n in encoded[0]}, whole, _step()))
    torch.stack(list(terms.values())).sum().backward()
    return terms, _gradients(system)


def _joined(parts: list[Batch]) -> Batch:
    """Labels, ids and extras of all parts; no streams, as ``losses`` sees them there."""
    label, index, view = (torch.cat([getattr(p, name) for p in parts]) for name in ("label", "index", "view"))
    extras = {name: torch.cat([p.extras[name] for p in parts]) for name in parts[0].extras}
    ids, groups = (tuple(x for p in parts for x in getattr(p, name)) for name in ("id", "group"))
    return Batch(ids, {}, index, view, label, groups, extras)


def _gradients(system: System) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in system.named_parameters() if p.grad is not None}


def _same(what: str, one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys(), f"{what}: {sorted(one.keys() ^ two.keys())}"
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-5, rtol=1e-4), f"{what} {name} is another one in chunks"


def _one_modality(cls: type[System], kind: str) -> None:
    """A clip whose stream holds nothing at all has an embedding without NaN."""
    system, clip = _made(cls, kind), _clips(cls, kind, n=1)[0]
    if not isinstance(system, Embeds):
        return
    for name, stream in clip.streams.items():
        blank = Stream(torch.zeros_like(stream.data), torch.zeros_like(stream.mask), stream.rate)
        z = _embedded(system, _batch([Clip("0", {name: blank})]), name)
        assert bool(torch.isfinite(z).all())
