"""lin2021_spatial_audio_partial_supervision: ears that add up, the losses of the paper, a share without truth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from avcl.data import collate
from avcl.data.world import World
from avcl.errors import BatchError, ConfigError
from avcl.seeds import seeded
from avcl.system import Generates, Step
from avcl.systems.lin2021_spatial_audio_partial_supervision import Heard, SpatialAudio, SpatialAudioConfig
from avcl.tasks.spatial import Spatial
from avcl.types import Batch, DataSpec, Inputs, Stream, StreamSpec

CONFIG = replace(SpatialAudioConfig.tiny(), window=1.0, fps=4.0)


@pytest.fixture(scope="module")
def batch() -> Batch:
    world = World("spatial", clips=8, split="val").configure(CONFIG.decoding)
    return collate([world.clip(i) for i in range(8)]).to("cpu")


def made(**settings) -> SpatialAudio:
    spec = DataSpec(
        {"audio": StreamSpec("audio", (2,), 8000.0), "video": StreamSpec("video", (3, 32, 32), 4.0)}, n_items=8
    )
    with seeded(0, "init"):
        return SpatialAudio(replace(CONFIG, **settings), spec).eval()


def at() -> Step:
    return Step(0, 10, 0, 0.0, torch.Generator().manual_seed(0))


def generated(system: SpatialAudio, batch: Batch) -> torch.Tensor:
    return system.generate(batch, torch.Generator().manual_seed(0)).data


def test_the_ears_add_up_to_what_was_given_and_the_truth_is_not_read(batch: Batch) -> None:
    system = made()
    assert isinstance(system, Generates)
    shown = Spatial().shown(batch)
    ears = generated(system, shown)
    assert ears.shape == batch.audio.data.shape
    torch.testing.assert_close(ears.sum(2), batch.audio.data.sum(2), atol=1e-6, rtol=1e-4)
    assert float((ears[:, :, 0] - ears[:, :, 1]).abs().max()) > 1e-3
    torch.testing.assert_close(generated(system, batch), ears)  # given both ears it takes their sum, and no more
    silent = replace(shown, streams={**shown.streams, "audio": shown.audio._replace(data=0 * shown.audio.data)})
    assert not bool(generated(system, silent).any())


def test_overlapping_segments_blend_into_the_whole(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that says "a third of the sum is the difference" gives the ears two thirds and one third of it."""
    system = made()
    monkeypatch.setattr(system, "_heard", lambda given: Heard(given.spectrum / 3, given.kept, (1, 1)))
    mono = batch.audio.data.sum(2)
    expected = torch.stack([2 * mono / 3, mono / 3], 2)
    torch.testing.assert_close(generated(system, batch), expected, atol=1e-5, rtol=1e-3)


def test_consistency_is_the_cross_entropy_of_side_heard_and_side_seen() -> None:
    system = made()
    g = torch.Generator().manual_seed(0)
    a, v = torch.randn(2, 3, 2, 4, generator=g), torch.randn(2, 4, 5, 6, generator=g)
    found = system._left(a, v)
    x = torch.linspace(-1, 1, 6)
    for m, k in ((0, 0), (1, 5)):
        patch = a[m].flatten(0, 1)[k]
        cosine = torch.nn.functional.cosine_similarity(patch[:, None, None], v[m], dim=0)
        expected = 10 * (cosine * (torch.sigmoid(-5 * x) - torch.sigmoid(5 * x))).mean()
        torch.testing.assert_close(found[m, k], expected)
    torch.testing.assert_close(system._left(a, v.flip(3)), -found)  # the mirrored picture says the other side


def test_the_louder_ear_of_a_patch_is_that_of_its_spectra() -> None:
    left, right = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])  # |L| = 5, |R| = 1
    mono = (left + right).expand(2, 1, 4, 6, 2)
    louder = SpatialAudio._louder(mono, (left - right).expand(2, 1, 4, 6, 2), torch.tensor([2, 3]))
    torch.testing.assert_close(louder, torch.full((2, 1, 6), 4.0))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_clips_is_learned_from_without_their_ears(batch: Batch, share: float) -> None:
    """For the others no true spectrum enters any loss, and the consistency alone moves their masks."""
    system = made(labeled=share)
    wide = replace(batch, index=torch.arange(8) + 100)
    encoded = system.encode(wide)
    assert encoded["labeled"].float().mean() == pytest.approx(share, abs=0.13)
    exchanged = torch.where(encoded["labeled"][:, None, None], wide.audio.data, wide.audio.data.flip(2))
    other = replace(wide, streams={**wide.streams, "audio": wide.audio._replace(data=exchanged)})
    for name, value in system.losses(encoded, wide, at()).items():
        torch.testing.assert_close(system.losses(system.encode(other), wide, at())[name], value)
    losses = system.losses(encoded, wide, at())
    assert (float(losses["recovery"].detach()) > 0) == (share > 0)
    losses["consistency"].backward()
    assert bool(system.unet.ups[-1].weight.grad.any()) == (share < 1)


def test_the_share_holds_over_many_clips() -> None:
    index = torch.arange(1000)
    for share in (0.2, 0.5):
        assert ((index.double() * 0.6180339887498949) % 1 < share).float().mean() == pytest.approx(share, abs=0.01)


def test_says_what_it_needs(batch: Batch) -> None:
    streams = {"audio": StreamSpec("audio", (1,), 8000.0), "video": StreamSpec("video", (3, 32, 32), 4.0)}
    with pytest.raises(ConfigError, match="one channel"):
        SpatialAudio(CONFIG, DataSpec(streams))
    with pytest.raises(ConfigError, match="not features"):
        SpatialAudio(CONFIG, DataSpec({n: StreamSpec("features", (4,), 1.0) for n in streams}))
    with pytest.raises(ConfigError, match="hop"):
        replace(CONFIG, hop=200)
    with pytest.raises(BatchError, match="stereo"):
        made().encode(Spatial().shown(batch))
    assert SpatialAudio.inputs(CONFIG) == Inputs(fps=4.0, size=(32, 32), sample_rate=8000, channels=2, window=1.0)


def panned(count: int, seed: int) -> Batch:
    """Noise bursts whose level at each ear follows the column of a disc: left (1 - x) / 2, right (1 + x) / 2."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(count, generator=g) * 1.8 - 0.9
    mono = torch.randn(count, 4000, generator=g) * 0.1
    sound = torch.stack([mono * (1 - x[:, None]) / 2, mono * (1 + x[:, None]) / 2], 2)
    column, row = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="xy")
    height = torch.rand(count, 1, 1, generator=g) - 0.5
    disc = ((column - x[:, None, None]) ** 2 + (row - height) ** 2 < 0.05).float()
    color = torch.rand(count, 2, 3, 1, 1, generator=g)
    picture = color[:, 0] * disc[:, None] + color[:, 1] * (1 - disc[:, None])
    streams = {
        "audio": Stream(sound, torch.ones(count, 4000, dtype=torch.bool), 8000.0),
        "video": Stream(picture[:, None].repeat(1, 4, 1, 1, 1), torch.ones(count, 4, dtype=torch.bool), 8.0),
    }
    index = torch.arange(count)
    names = tuple(f"{seed}-{i}" for i in range(count))
    return Batch(names, streams, index, torch.zeros_like(index), -torch.ones_like(index), names)


def test_learns_the_side_from_the_picture() -> None:
    """And the mirrored picture exchanges the ears."""
    system = made(widths=(8, 16, 16), look=24, told=8, n_fft=128, steps=32, segments=2).train()
    optimizer = torch.optim.AdamW(system.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for step in range(100):
        batch = panned(16, step)
        loss = torch.stack(list(system.losses(system.encode(batch), batch, at()).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    system.eval()
    test = panned(32, 1000)
    truth = test.audio.data
    ears = generated(system, Spatial().shown(test))
    mirrored = replace(test, streams={**test.streams, "video": test.video._replace(data=test.video.data.flip(4))})

    def gap(made: torch.Tensor) -> float:
        return float((made - truth).square().sum() / (truth.sum(2, keepdim=True) / 2 - truth).square().sum())

    assert gap(ears) < 0.5  # mono: 1
    assert gap(generated(system, mirrored)) > 2
