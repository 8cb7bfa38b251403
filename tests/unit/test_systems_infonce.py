"""The system infonce: shapes, masks, gradients, and that it learns which sound belongs to which picture."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from avcl.errors import BatchError, ConfigError
from avcl.seeds import seeded
from avcl.system import Embeds, Represents, Step
from avcl.systems.infonce import InfoNCE, InfoNCEConfig
from avcl.types import Batch, DataSpec, Stream, StreamSpec

AT = Step(0, 1, 0, 0.0, torch.Generator())
MEDIA = DataSpec(
    {"audio": StreamSpec("audio", (1,), 8000.0), "video": StreamSpec("video", (3, 32, 32), 8.0)}, n_items=64
)
FEATURES = DataSpec(
    {
        "audio": StreamSpec("features", (6,), 1.0),
        "video": StreamSpec("map", (2, 2, 9), 1.0),
        "text": StreamSpec("tokens", (), 1.0),
    }
)
TINY = dataclasses.replace(InfoNCEConfig.tiny(), window=1.0, dropout=0.0)


def full(data: torch.Tensor, rate: float) -> Stream:
    return Stream(data, torch.ones(data.shape[:2], dtype=torch.bool), rate)


def batch(streams: dict[str, Stream], label: torch.Tensor | None = None) -> Batch:
    n = len(next(iter(streams.values())).data)
    zero = torch.zeros(n, dtype=torch.long)
    label = zero - 1 if label is None else label
    return Batch(tuple(map(str, range(n))), streams, torch.arange(n), zero, label, tuple(map(str, range(n))))


def flashes(n: int, seed: int, *, channels: int = 1) -> Batch:
    """1 s clips: the picture lights up while a tone sounds, at a time of its own; pitch goes with color."""
    g = torch.Generator().manual_seed(seed)
    start, hue = torch.randint(0, 6, (n,), generator=g), torch.randint(0, 3, (n,), generator=g)
    frame = torch.arange(8)[None]
    lit = (frame >= start[:, None]) & (frame < start[:, None] + 2)  # [n, 8]
    color = torch.eye(3)[hue] * 0.6 + 0.2
    video = lit[:, :, None, None, None] * color[:, None, :, None, None].expand(n, 8, 3, 32, 32)
    video = (video * 255 + 20 * torch.rand(n, 8, 3, 32, 32, generator=g)).to(torch.uint8)
    time = torch.arange(8000) / 8000
    tone = torch.sin(2 * math.pi * 300 * 2.0 ** hue[:, None] * time) * lit.repeat_interleave(1000, 1)
    audio = (tone + 0.01 * torch.randn(n, 8000, generator=g))[:, :, None].repeat(1, 1, channels)
    return batch({"audio": full(audio, 8000.0), "video": full(video, 8.0)}, hue)


def made(config: InfoNCEConfig = TINY, spec: DataSpec = MEDIA) -> InfoNCE:
    with seeded(0, "init"):
        return InfoNCE(config, spec)


@pytest.fixture
def mixed() -> Batch:
    g = torch.Generator().manual_seed(1)
    return batch(
        {
            "audio": full(torch.randn(6, 4, 6, generator=g), 1.0),
            "video": full(torch.randn(6, 3, 2, 2, 9, generator=g), 1.0),
            "text": full(torch.randint(0, 256, (6, 7), generator=g), 1.0),
        },
        torch.tensor([0, 0, 1, 1, 2, 2]),
    )


def test_learns_in_a_few_steps_and_only_true_partners_match() -> None:
    system = made().train()
    optimizer = torch.optim.AdamW(system.parameters(), lr=3e-3)
    for step in range(25):
        loss = torch.stack(list(system(flashes(16, step), AT)[0].values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    system.eval()
    test = flashes(60, 1000)
    z = {name: system.embed(test, name) for name in ("audio", "video")}
    scores = system.similarity(z["audio"], z["video"])
    same = scores.diagonal()[:, None]
    # There are 18 kinds of clips; a tie with a clip of the own kind is no mistake.
    rank = (scores > same + 0.05).sum(1)
    assert float((rank < 6).float().mean()) > 0.8  # chance .1
    untrained = made()
    blind = untrained.similarity(untrained.embed(test, "audio"), untrained.embed(test, "video"))
    assert float(((blind > blind.diagonal()[:, None]).sum(1) < 6).float().mean()) < 0.35


def test_contract_of_embeddings() -> None:
    system, test = made().eval(), flashes(5, 0)
    assert isinstance(system, Embeds)
    assert isinstance(system, Represents)
    z = system.embed(test, "video")
    assert z.shape == (5, TINY.width + TINY.channels * TINY.steps)
    assert z.dtype == torch.float32
    assert torch.allclose(z.norm(dim=1), torch.ones(5), atol=1e-5)
    assert torch.allclose(system.embed(test.to("cpu"), "video"), z, atol=1e-6)  # uint8 or float pictures
    assert torch.allclose(system.similarity(z, z).diagonal(), torch.ones(5), atol=1e-5)
    both = system.embed(test, "audio+video")
    assert torch.allclose(both, torch.nn.functional.normalize(z + system.embed(test, "audio"), dim=1), atol=1e-5)
    assert system.features(test, "video").shape == (5, system.towers["video"].dim)
    alone = batch({"audio": test.audio})
    assert torch.allclose(system.embed(alone, "audio"), system.embed(test, "audio"))
    with pytest.raises(BatchError, match="no video"):
        system.embed(alone, "video")


def test_padding_sizes_rates_channels_and_stills() -> None:
    system, test = made().eval(), flashes(4, 0)
    for name, extra in (("audio", 777), ("video", 3)):
        data, mask, rate = test.streams[name]
        tail = data[:, :1].expand(-1, extra, *data.shape[2:])
        long = Stream(torch.cat([data, tail], 1), torch.cat([mask, torch.zeros(4, extra, dtype=torch.bool)], 1), rate)
        given = batch({**test.streams, name: long})
        assert torch.allclose(system.embed(given, name), system.embed(test, name), atol=1e-5)
    stereo = flashes(4, 0, channels=2)
    assert torch.allclose(system.embed(stereo, "audio"), system.embed(test, "audio"), atol=1e-5)
    # Another frame rate, picture size and sample rate of the same clips give nearly the same embedding.
    data = test.video.data
    larger = torch.nn.functional.interpolate(data.flatten(0, 1).float() / 255, scale_factor=2).reshape(4, 8, 3, 64, 64)
    faster = batch(
        {"video": full(larger.repeat_interleave(3, 1), 24.0), "audio": full(test.audio.data[:, ::2], 4000.0)}
    )
    for name in ("audio", "video"):
        assert torch.isfinite(system.embed(faster, name)).all()
    still = system.embed(batch({"video": full(data[:, :1], 8.0)}), "video")
    assert torch.allclose(still.norm(dim=1), torch.ones(4), atol=1e-5)
    assert float(still[:, TINY.width :].abs().max()) < 1e-3  # one picture has no timing
    absent = Stream(torch.zeros_like(data), torch.zeros(4, 8, dtype=torch.bool), 8.0)
    assert float(system.embed(batch({"video": absent}), "video").abs().max()) == 0


def test_every_parameter_learns_from_media_features_and_text(mixed: Batch) -> None:
    for system, given in ((made(), flashes(6, 0)), (made(spec=FEATURES), mixed)):
        terms, encoded = system.train()(given, AT)
        torch.stack(list(terms.values())).sum().backward()
        silent = [name for name, p in system.named_parameters() if p.grad is None or not bool(p.grad.any())]
        assert not silent
        assert all(len(value) == 6 for value in encoded.values())
        assert all(bool(torch.isfinite(value)) for value in terms.values())


def test_one_term_for_each_pair_of_modalities(mixed: Batch) -> None:
    terms, _ = made(spec=FEATURES)(mixed, AT)
    assert list(terms) == ["audio_video", "audio_text", "video_text"]
    two = made(dataclasses.replace(TINY, modalities=("text", "audio")), FEATURES)
    assert list(two(mixed, AT)[0]) == ["text_audio"]
    for name in ("audio", "video", "text"):
        assert made(spec=FEATURES).eval().embed(mixed, name).shape == (6, TINY.width)


def test_rows_without_a_partner_and_positives_by_label(mixed: Batch) -> None:
    system = made(dataclasses.replace(TINY, modalities=("audio", "video")), FEATURES)
    _, encoded = system(mixed, AT)
    mask = mixed.video.mask.clone()
    mask[3:] = False
    fewer = batch({**mixed.streams, "video": mixed.video._replace(mask=mask)})
    first = batch({name: Stream(s.data[:3], s.mask[:3], s.rate) for name, s in mixed.streams.items()})
    assert torch.allclose(system(fewer, AT)[0]["audio_video"], system(first, AT)[0]["audio_video"], atol=1e-5)
    nobody = batch({**mixed.streams, "video": mixed.video._replace(mask=mask & False)})
    with pytest.raises(BatchError, match="both audio and video"):
        system(nobody, AT)

    labeled = InfoNCE(dataclasses.replace(system.config, positives="label"), FEATURES)
    labeled.load_state_dict(system.state_dict())
    value = labeled.losses(encoded, mixed, AT)["audio_video"]
    a, v, t = encoded["audio"], encoded["video"], system.temperature
    logits = a @ v.T / t
    pairs = [(i, j) for i in range(6) for j in range(6) if i // 2 == j // 2]
    rows, columns = logits.log_softmax(1), logits.log_softmax(0)
    expected = -sum(rows[i, j] + columns[i, j] for i, j in pairs) / 24
    assert torch.allclose(value, expected, atol=1e-5)
    with pytest.raises(BatchError, match="label for every clip"):
        labeled(batch(dict(mixed.streams)), AT)


def test_temperature_starts_where_it_should_and_is_bounded() -> None:
    system = made()
    assert float(system.temperature.detach()) == pytest.approx(0.07)
    with torch.no_grad():
        system.log_scale.fill_(50.0)
    assert float(system.temperature.detach()) == pytest.approx(0.01)


def test_settings_reach_the_decoder_and_wrong_ones_are_named() -> None:
    config = InfoNCEConfig.from_json({"window": "1.5", "size": "48,96", "fps": 12, "sample_rate": "8000"})
    inputs = InfoNCE.inputs(config)
    assert (inputs.window, inputs.size, inputs.fps, inputs.sample_rate) == (1.5, (48, 96), 12.0, 8000)
    with pytest.raises(ConfigError, match=r"winodw.*window"):
        InfoNCEConfig.from_json({"winodw": 1})
    with pytest.raises(ConfigError, match="pair"):
        made(dataclasses.replace(TINY, positives="both"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no modality"):
        made(dataclasses.replace(TINY, modalities=("audio", "smell")))
    with pytest.raises(ConfigError, match="two modalities"):
        made(dataclasses.replace(TINY, modalities=("audio",)))
    with pytest.raises(ConfigError, match="no tower"):
        made(spec=DataSpec({**MEDIA.streams, "audio": StreamSpec("spectrum", (4, 1), 1.0)}))
    with pytest.raises(ConfigError, match='no "smell"'):
        made().embed(flashes(2, 0), "smell")


def test_autocast_leaves_embeddings_and_loss_in_float32() -> None:
    system, given = made(), flashes(8, 0)
    exact, _ = system(given, AT)
    with torch.autocast("cpu", torch.bfloat16):
        terms, encoded = system(given, AT)
        z = system.embed(given, "audio")
    assert encoded["audio"].dtype == z.dtype == terms["audio_video"].dtype == torch.float32
    assert float(terms["audio_video"].detach()) == pytest.approx(float(exact["audio_video"].detach()), abs=0.1)
