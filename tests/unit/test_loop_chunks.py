"""Batches larger than the machine: the chunked step has the gradients of the whole one, with one chunk of media."""

from __future__ import annotations

import gc
import math
import os
import weakref
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from loop_toys import EVERYTHING, SPEC, TRAIN, VAL, WIDTH, Config, Pairs, Towers, make, noisy, quiet, run, same
from torch import nn

from avcl import api
from avcl.data import Loader, collate
from avcl.data.loader import share
from avcl.errors import BatchError, ConfigError, DivergedError
from avcl.loop.chunks import Cached, Chunks, Scratch
from avcl.seeds import seed_everything, seed_for, seeded
from avcl.system import Phase, Step
from avcl.systems.infonce import InfoNCE, InfoNCEConfig
from avcl.types import Batch, Card, Inputs, Stream

SEED = 7


def batch_of(data: Pairs, rows: range) -> Batch:
    return collate([data.clip(i) for i in rows])


def in_chunks(data: Pairs, rows: int, size: int) -> list[Batch]:
    return [batch_of(data, range(at, min(rows, at + size))) for at in range(0, rows, size)]


def step() -> Step:
    return Step(0, 1, 0, 0.0, torch.Generator().manual_seed(5))


def gradients(system: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in system.named_parameters() if p.grad is not None}


def cached_gradients(system, parts: list[Batch], *, precision=nullcontext) -> dict[str, torch.Tensor]:
    """Of the sum of all terms, by the two passes."""
    scratch = Scratch()
    try:
        chunks = Chunks(iter(parts), count=len(parts), scratch=scratch)
        cached = Cached(system, chunks, seed=SEED, precision=precision)
        encoded, batch = cached.encode()
        with precision():
            loss = sum(system.losses(encoded, batch, step()).values())
        cached.backward(loss, list(system.parameters()))
    finally:
        scratch.close()
    return gradients(system)


def graph_gradients(system, parts: list[Batch], whole: Batch) -> dict[str, torch.Tensor]:
    """The reference: the chunks under the same seeds in one graph, then the losses, then one backward pass."""
    first, encoded = 0, []
    for part in parts:
        seed_everything(seed_for(SEED, "row", first))
        encoded.append(system.encode(part))
        first += len(part)
    seed_everything(seed_for(SEED, "losses"))
    beside = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
    sum(system.losses(beside, whole, step()).values()).backward()
    return gradients(system)


def plain_gradients(system, whole: Batch) -> dict[str, torch.Tensor]:
    sum(system(whole, step())[0].values()).backward()
    return gradients(system)


def assert_same_gradients(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert one
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


# ----------------------------------------------------------------------------------------------------- exact gradients
@pytest.mark.parametrize("size", [1, 3, 5, 8, 11])
def test_equal_to_the_whole_step_with_a_ragged_last_chunk(size) -> None:
    """Rows that do not know of each other (running statistics, no dropout): any chunks give the whole batch's step."""
    whole, chunked = make().eval(), make().eval()
    expected = plain_gradients(whole, batch_of(TRAIN, range(11)))
    found = cached_gradients(chunked, in_chunks(TRAIN, 11, size))
    assert "temperature" in found
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_dropout_and_batch_statistics_are_those_of_chunks_under_their_seeds(size) -> None:
    one, two, parts = make().train(), make().train(), in_chunks(TRAIN, 12, size)
    expected = graph_gradients(one, parts, batch_of(TRAIN, range(12)))
    assert_same_gradients(cached_gradients(two, parts), expected)
    # running statistics moved once a chunk, and in the same order
    assert same(dict(one.named_buffers()), dict(two.named_buffers()))
    assert int(two.audio[1].num_batches_tracked) == len(parts)


def test_buffers_that_encode_moves_are_the_same_in_both_passes() -> None:
    """Spectral norm iterates at each forward pass: the replay must meet what the first pass met."""

    def normed() -> Towers:
        system = make()
        with seeded(1, "norm"):
            system.audio[0] = nn.utils.parametrizations.spectral_norm(system.audio[0])
        return system.train()

    one, two, parts = normed(), normed(), in_chunks(TRAIN, 12, 5)
    expected = graph_gradients(one, parts, batch_of(TRAIN, range(12)))
    assert_same_gradients(cached_gradients(two, parts), expected)
    assert same(dict(one.named_buffers()), dict(two.named_buffers()))


def test_the_real_infonce_on_features() -> None:
    def system() -> InfoNCE:
        with seeded(0, "init"):
            return InfoNCE(replace(InfoNCEConfig.tiny(), dropout=0.0), SPEC).train()

    expected = plain_gradients(system(), batch_of(TRAIN, range(20)))
    found = cached_gradients(system(), in_chunks(TRAIN, 20, 6))
    assert "log_scale" in found
    assert_same_gradients(found, expected)


def test_bf16() -> None:
    """Casts that autocast remembers from the pass without gradient must not reach the pass with it."""

    def precision():
        return torch.autocast("cpu", torch.bfloat16)

    whole, chunked = make().eval(), make().eval()
    with precision():
        loss = sum(whole(batch_of(TRAIN, range(12)), step())[0].values())
    loss.backward()
    found = cached_gradients(chunked, in_chunks(TRAIN, 12, 5), precision=precision)
    for name, expected in gradients(whole).items():
        torch.testing.assert_close(found[name], expected, rtol=0.05, atol=0.02)


def test_sequences_of_different_length_are_padded_as_in_one_batch() -> None:
    class Sequences(Towers):
        def encode(self, batch):
            audio, video = batch.require("audio", "video")
            z = self.video[0](audio.data)
            return {"z": z, "z?": audio.mask, "v": self.video[0](video.data).mean(1)}

        def losses(self, encoded, batch, at):
            score = torch.einsum("btd,cd->bct", encoded["z"], encoded["v"])
            score = score.masked_fill(~encoded["z?"][:, None], -1e4).logsumexp(2)
            return {"nce": nn.functional.cross_entropy(score, torch.arange(len(score)))}

    def long(i: int):
        clip, g = TRAIN.clip(i), torch.Generator().manual_seed(i)
        audio = Stream(torch.randn(1, 1 + i % 4, WIDTH, generator=g), torch.ones(1, 1 + i % 4, dtype=torch.bool), 1.0)
        return replace(clip, streams={**clip.streams, "audio": audio})

    clips = [long(i) for i in (0, 4, 1, 5, 3, 2)]
    with seeded(0, "init"):
        one, two = Sequences(Config(), SPEC), Sequences(Config(), SPEC)
    two.load_state_dict(one.state_dict())
    expected = plain_gradients(one, collate(clips))
    assert_same_gradients(cached_gradients(two, [collate(clips[at : at + 2]) for at in (0, 2, 4)]), expected)


# -------------------------------------------------------------------------------------------------------- whole runs
@pytest.mark.parametrize("case", ["plain", "players", "views", "clip", "ragged data"])
def test_a_run_in_chunks_is_the_run_in_whole_batches(case) -> None:
    settings = {"players": {"players": 2}, "clip": {"clip_norm": 0.1}, "ragged data": {"batch_size": 50}}.get(case, {})
    options = {"inputs": Inputs(views=2)} if case == "views" else {}
    options["transforms"] = (noisy,)
    whole = run(system=quiet(**settings), **options)
    chunked = run(system=quiet(micro_batch=4, **settings), **options)
    for name, tensor in whole.system.state_dict().items():
        torch.testing.assert_close(chunked.system.state_dict()[name], tensor, rtol=1e-4, atol=2e-5)
    for one, two in zip(whole.history, chunked.history, strict=True):
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert two["validation"] == pytest.approx(one["validation"], abs=1e-5)


@pytest.mark.parametrize("micro", [6, 7, 1000])
def test_a_micro_batch_of_the_whole_batch_is_the_plain_step(micro) -> None:
    assert same(run(settings={"micro_batch": micro}).system.state_dict(), run().system.state_dict())


def test_the_number_of_workers_changes_nothing() -> None:
    one, two = (run(settings={"micro_batch": 4}, transforms=(noisy,), workers=n) for n in (0, 2))
    assert same(one.system.state_dict(), two.system.state_dict())


def test_hooks_see_the_whole_batch_without_streams() -> None:
    seen = []

    class Looking(Towers):
        def after_step(self, encoded, batch, at):
            seen.append(
                (len(batch), encoded["audio"].shape, dict(batch.streams), batch.id, encoded["audio"].requires_grad)
            )

    run(system=Looking(Config(micro_batch=4, epochs=1), SPEC), val=None)
    order = [clip for batch in Loader(TRAIN, batch_size=6, shuffle=True) for clip in batch.id]
    assert [row[:3] for row in seen] == [(6, (6, 4), {})] * 4
    assert [clip for row in seen for clip in row[3]] == order
    assert not any(row[4] for row in seen)


def test_a_batch_that_nobody_plays_is_passed_over() -> None:
    class Late(Towers):
        def phases(self):
            return (Phase("main", tuple(self.parameters()), every=3),)

        def after_step(self, encoded, batch, at):
            seen[at.step] = batch.id

    seen: dict = {}
    run(system=Late(Config(micro_batch=4, epochs=2), SPEC), val=None)
    with Loader(TRAIN, batch_size=6, shuffle=True) as loader:
        every = [batch.id for epoch in (0, 1) for batch in loader.batches(epoch)]
    assert seen == {n: every[n] for n in (0, 3, 6)}


# ------------------------------------------------------------------------------------------------------ memory and disk
def test_media_of_one_chunk_are_alive(monkeypatch) -> None:
    """No chunk is decoded before the one before it is forgotten; the second pass reads one ahead."""
    alive: set[int] = set()
    counts: dict[str, list[int]] = {"made": [], "read": []}

    def tracked(how: str, batch: Batch) -> Batch:
        for stream in batch.streams.values():
            mark = sum(map(len, counts.values()))
            alive.add(mark)
            weakref.finalize(stream.data, alive.discard, mark)
            counts[how].append(len(alive))
        return batch

    made, read = Loader._made, Scratch.get

    monkeypatch.setattr(Loader, "_made", lambda self, plan: map(partial(tracked, "made"), made(self, plan)))
    monkeypatch.setattr(Scratch, "get", lambda self, number: tracked("read", read(self, number)))
    for hook in ("begin_epoch", "finish"):  # they may keep what they like
        monkeypatch.setattr(Towers, hook, lambda self, batches, epoch=0: None)
    gc.disable()  # references alone decide
    try:
        run(settings={"micro_batch": 2, "batch_size": 12, "players": 2})
    finally:
        gc.enable()
    assert min(map(len, counts.values())) > 90
    assert max(counts["made"]) == 2  # two streams of one chunk
    assert max(counts["read"]) == 4
    assert not alive


def test_the_scratch_is_a_file_without_a_name(tmp_path) -> None:
    scratch, batch = Scratch(tmp_path / "new"), batch_of(TRAIN, range(3))
    batch = replace(batch, streams={**batch.streams, "empty": Stream(torch.zeros(3, 0, 2), torch.ones(3, 0) > 0, 2.0)})
    picture = Stream(torch.arange(24, dtype=torch.uint8).reshape(3, 2, 4), torch.ones(3, 2, dtype=torch.bool), 8.0)
    batches = [batch, replace(batch_of(VAL, range(2)), streams={"video": picture})]
    for turn in range(2):
        scratch.clear()
        for one in batches[turn:]:
            scratch.put(one)
        for number, one in enumerate(batches[turn:]):
            found = scratch.get(number)
            assert (found.id, found.streams.keys()) == (one.id, one.streams.keys())
            assert all(torch.equal(found.streams[n].data, one.streams[n].data) for n in one.streams)
            assert all(torch.equal(found.streams[n].mask, one.streams[n].mask) for n in one.streams)
            assert all(found.streams[n].rate == one.streams[n].rate for n in one.streams)
            assert all(found.streams[n].data.dtype == one.streams[n].data.dtype for n in one.streams)
    assert os.listdir(tmp_path / "new") == []
    scratch.close()


def test_nothing_is_left_on_the_disk(tmp_path) -> None:
    run(tmp_path, settings={"micro_batch": 4})
    assert sorted(os.listdir(tmp_path)) == [".lock", "checkpoints", "metrics.jsonl"]


def test_pieces_of_batches_in_the_order_of_the_whole() -> None:
    loader = Loader(TRAIN, batch_size=7, shuffle=True, drop_last=True, views=2)
    whole = [[batch.id for batch in loader.batches(3, start=1)]]
    pieces = [[list(batch) for batch in loader.chunks(3, 1, size=3)]]
    assert [[sum((p.id for p in batch), ()) for batch in epoch] for epoch in pieces] == whole
    assert [[len(p) for p in batch] for batch in pieces[0]] == [[4, 4, 6]] * 2
    halves = [[list(batch) for batch in loader.chunks(3, 1, size=3, part=(k, 2))] for k in range(2)]
    both = [sum((p.id for half in pair for p in half), ()) for pair in zip(*halves, strict=True)]
    assert both == whole[0]
    assert [(share(7, (k, 3)).start, share(7, (k, 3)).stop) for k in range(3)] == [(0, 2), (2, 4), (4, 7)]


# ---------------------------------------------------------------------------------------------------------- refusals
def test_a_declared_limit_is_quoted() -> None:
    class Limited(Towers):
        card = Card("Toy", 2024, "Nowhere", limits={"cache": "its loss compares spectrograms of whole batches"})

    system = Limited(Config(micro_batch=2), SPEC)
    with pytest.raises(ConfigError, match="micro_batch: its loss compares spectrograms of whole batches"):
        run(system=system)
    assert run(system=Limited(Config(), SPEC), max_steps=1).steps == 1


def test_losses_that_read_streams_fail_loudly() -> None:
    class Raw(Towers):
        def losses(self, encoded, batch, at):
            return {"raw": (encoded["audio"].mean(1) - batch.audio.data.mean((1, 2))).square().mean()}

    assert run(system=Raw(Config(), SPEC), max_steps=1).steps == 1
    with pytest.raises(BatchError, match=r"the losses of this system read audio.*Card\.limits") as caught:
        run(system=Raw(Config(micro_batch=4), SPEC))
    assert "micro_batch" in caught.value.what


@pytest.mark.parametrize("value", [lambda z: z.mean(), lambda z: z.mean(0), lambda z: z.T])
def test_encode_that_is_not_by_rows_fails_loudly(value) -> None:
    class Across(Towers):
        def encode(self, batch):
            encoded = super().encode(batch)
            return {**encoded, "other": value(encoded["audio"])}

    with pytest.raises(ConfigError, match=r'"other" of shape .* not one row per clip'):
        run(system=Across(Config(micro_batch=5), SPEC))


def test_values_that_no_training_can_have() -> None:
    with pytest.raises(ConfigError, match="micro_batch = -1"):
        Config(micro_batch=-1)


def test_closed_forms_ignore_it() -> None:
    sizes = []

    class Mean(Towers):
        closed_form = True
        card = Card("Toy", 2024, "Nowhere", limits={"cache": "none is needed"})

        def finish(self, batches):
            sizes.extend(len(batch) for batch in batches)

    run(system=Mean(Config(micro_batch=2), SPEC), val=None)
    assert sizes == [6] * 4


def test_a_bad_clip_is_found_in_its_chunk() -> None:
    with pytest.raises(DivergedError, match=r'step \d: loss nce = nan, .*; video of clip "clip5" has'):
        run(train=Pairs(24, broken=5), settings={"micro_batch": 4})
    system = make(micro_batch=4)
    with torch.no_grad():
        system.video[0].weight[0, 0] = math.inf
    with pytest.raises(DivergedError, match=r"the weight video\.0\.weight is not finite"):
        run(system=system)


def test_everything_at_once() -> None:
    """Players, moving average, early stopping and bf16 in chunks: it learns."""
    result = run(settings={**EVERYTHING, "micro_batch": 4, "precision": "bf16", "epochs": 6})
    assert result.history[-1]["losses"]["nce"] < result.history[0]["losses"]["nce"]


def test_train_takes_both_sizes() -> None:
    model = api.train(InfoNCE, TRAIN, settings={"batch_size": 3, "epochs": 1}, batch_size=8, micro_batch=3)
    assert (model.system.config.batch_size, model.system.config.micro_batch) == (8, 3)
    assert model.meta["training"]["steps"] == 3
    with pytest.raises(ConfigError, match="batch_size = 0"):
        api.train(InfoNCE, TRAIN, batch_size=0)
