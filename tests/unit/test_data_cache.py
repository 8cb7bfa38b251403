"""The cache: exact, shared, forgiving, bounded."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
import torch

from avcl.data import StreamCache
from avcl.data.cache import stream_key
from avcl.errors import ConfigError, MissingFile, NotMedia
from avcl.types import Stream


def streams(seed: int = 0, steps: int = 50) -> dict[str, Stream]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(1, steps, dtype=torch.bool)
    mask[0, -3:] = False
    return {
        "audio": Stream(torch.randn(1, steps, 2, generator=generator), mask, 16_000.0),
        "video": Stream(
            torch.randint(0, 256, (1, 3, 3, 4, 4), generator=generator, dtype=torch.uint8), mask[:, :3], 8.5
        ),
    }


def same(a: dict[str, Stream], b: dict[str, Stream]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k].data, b[k].data) and torch.equal(a[k].mask, b[k].mask) and a[k].rate == b[k].rate for k in a
    )


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    cache = StreamCache(tmp_path)
    key = stream_key(["content"], {"fps": 8})
    assert cache.get(key) is None
    cache.put(key, streams())
    found = StreamCache(tmp_path).get(key)
    assert found is not None
    assert same(found, streams())
    assert found["audio"].data.dtype == torch.float32
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".tmp"]


def test_keys_depend_on_everything() -> None:
    keys = {
        stream_key(*args)
        for args in (([], 1), (["a"], 1), (["b"], 1), (["a", "b"], 1), (["ab"], 1), (["a"], [1, None]))
    }
    assert len(keys) == 6


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other", "folder"])
def test_a_damaged_entry_is_no_entry(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    cache = StreamCache(tmp_path)
    cache.put("ab12", streams())
    path = cache.path("ab12")
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        flipped = bytearray(whole)
        flipped[-7] ^= 1
        path.write_bytes({"empty": b"", "cut": whole[:-9], "flipped": bytes(flipped), "other": b"\0" * 64}[damage])
    with caplog.at_level(logging.WARNING, "avcl.data"):
        assert cache.get("ab12") is None
    assert "damaged" in caplog.text
    if damage != "folder":
        cache.put("ab12", streams())
        assert same(cache.get("ab12") or {}, streams())


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = StreamCache(tmp_path / "file" / "cache")
    (tmp_path / "a.bin").write_bytes(b"a")
    with caplog.at_level(logging.WARNING, "avcl.data"):
        cache.put("ab12", streams())
        cache.put("cd34", streams())
        assert cache.get("ab12") is None
        assert len(cache.content_hash(tmp_path / "a.bin")) == 32
    assert caplog.text.count("AVCL_CACHE") == 1


def test_the_limit_removes_what_was_used_longest_ago(tmp_path: Path) -> None:
    cache = StreamCache(tmp_path, limit=1 << 40)
    names = [f"{i:02x}" + "0" * 10 for i in range(10)]
    for age, name in enumerate(names):
        cache.put(name, streams(steps=1000))
        os.utime(cache.path(name), (1e9 + age, 1e9 + age))
    assert cache.get(names[0]) is not None  # used again: now the newest
    size = cache.path(names[0]).stat().st_size
    cache.limit = 5 * size
    cache.evict()
    left = [name for name in names if cache.path(name).exists()]
    assert left == [names[0], *names[7:]]
    for name in names:
        cache.put(name, streams(steps=1000))  # writing alone keeps near the limit, too
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors")) <= cache.limit


def test_many_writers_of_one_entry(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            cache = StreamCache(tmp_path)
            for round in range(15):
                cache.put("ab12", streams())
                found = cache.get("ab12")
                assert found is not None, (seed, round)
                assert same(found, streams())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_content_hash_follows_the_bytes(tmp_path: Path) -> None:
    cache = StreamCache(tmp_path / "cache")
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"one")
    b.write_bytes(b"one")
    first = cache.content_hash(a)
    assert first == cache.content_hash(b) == cache.content_hash(a)
    a.write_bytes(b"two!")
    assert cache.content_hash(a) != first
    with pytest.raises(MissingFile):
        cache.content_hash(tmp_path / "none")
    with pytest.raises(NotMedia):
        cache.content_hash(tmp_path)


def test_content_hash_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import avcl.data.cache as module

    reads: list[Path] = []
    hash_file = module._hash_file
    monkeypatch.setattr(module, "_hash_file", lambda path: (reads.append(path), hash_file(path))[1])
    (tmp_path / "a").write_bytes(b"one")
    first = StreamCache(tmp_path / "cache").content_hash(tmp_path / "a")
    assert StreamCache(tmp_path / "cache").content_hash(tmp_path / "a") == first
    assert len(reads) == 1
    for note in (tmp_path / "cache" / "hashes").rglob("*"):
        if note.is_file():
            note.write_text("nonsense")
    assert StreamCache(tmp_path / "cache").content_hash(tmp_path / "a") == first
    assert len(reads) == 2


def test_settings_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVCL_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("AVCL_CACHE_GB", "0.5")
    assert (StreamCache().folder, StreamCache().limit) == (tmp_path / "here", 500_000_000)
    for wrong in ("much", "-1", "nan"):
        monkeypatch.setenv("AVCL_CACHE_GB", wrong)
        with pytest.raises(ConfigError, match="AVCL_CACHE_GB"):
            StreamCache()
