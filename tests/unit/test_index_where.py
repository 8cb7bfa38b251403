"""``where``: what is allowed works, everything else is E-CONFIG, however it is dressed up."""

from __future__ import annotations

import sqlite3
import time

import numpy as np
import pytest

from avcl.errors import ConfigError
from avcl.index import Index, where

DIM = 4


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("where") / "idx"
    index = Index.create(folder, model="m", dim=DIM)
    names = ["glass/a.wav", "glass/b.mp4", "metal/c d.wav", "wood/it's.wav"]
    segments = [(name, float(s), float(s + 3)) for name in names for s in range(5)]
    vectors = np.random.default_rng(0).standard_normal((len(segments), DIM))
    index.add(segments, {"audio": vectors})
    yield index
    index.close()


def paths(index, expression):
    hits = index.search(np.ones(DIM), "audio", k=100, where=expression)
    return sorted((h.path, h.start) for h in hits)


@pytest.mark.parametrize(
    ("expression", "count"),
    [
        ("path GLOB 'glass/*'", 10),
        ("path GLOB 'glass/*' AND start < 2", 4),
        ("PATH glob 'glass/*' and (start between 1 and 2 or \"end\" >= 7)", 6),
        ("end > 6", 4),
        ("folder = 'wood'", 5),
        ("name = 'it''s.wav'", 5),
        ("suffix IN ('.mp4', '.mov')", 5),
        ("lower(name) LIKE '%D.WAV'", 5),
        ("case when start > 3 then 1 else 0 end", 4),
        ("NOT silent AND audio AND NOT video", 20),
        ("duration IS NOT NULL and abs(start - 2) < .5", 4),
        ("name LIKE 'a%' OR length(path) = 13", 15),
        ("cast(start as integer) % 2 = 0", 12),
        ("[path] = 'glass/a.wav' or `path` = 'glass/b.mp4'", 10),
        ("0", 0),
        ("1", 20),
        ("'text'", 0),
        ("NULL", 0),
        ("start < -1e-3", 0),
        ("path = 'a;b--c/*d*/'", 0),
    ],
)
def test_expressions(index, expression, count):
    assert len(paths(index, expression)) == count


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "   ",
        "1; DROP TABLE files",
        "1;",
        "1) UNION SELECT id FROM segments WHERE (1",
        "1) OR (1",
        "1) LIMIT (1",
        "(1",
        "1)",
        "id IN (SELECT id FROM files)",
        "EXISTS(SELECT 1 FROM info)",
        "path IN files",
        "path IN (VALUES ('a'))",
        "path IN json_each('[1]')",
        "(WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM c) SELECT max(x) FROM c)",
        "load_extension('x')",
        "writefile('a', 'b')",
        "randomblob(1000000000) IS NULL",
        "zeroblob(1000000000) IS NULL",
        "printf('%1000000000d', 1)",
        "hex(path)",
        "replace(path, 'a', 'b')",
        "count(*) > 1",
        "max(path)",
        "row_number() OVER () = 1",
        "PRAGMA writable_schema = 1",
        "ATTACH 'x' AS y",
        "path = ?",
        "path = :name",
        "path = $x",
        "path = @x",
        "start -- comment",
        "start /* comment */",
        "hash = 'x'",
        "rowid = 1",
        "files.hash = 'x'",
        "info.path = 'x'",
        'path = "glass/a.wav"',
        "x'00'",
        "path MATCH 'a'",
        "path REGEXP 'a'",
        "path ->> 'a' IS NULL",
        "path -> 'a'",
        "1 = ",
        "path path",
        "'unfinished",
        "start < 10\x00",
        "start < 0x10",
        "start < 10a",
        "(" * 300 + "1" + ")" * 300,
        "1" + "+1" * 3000,
        "raise(ignore)",
        "current_timestamp > 1",
        "\ud800 = 1",
    ],
)
def test_refusals(index, expression):
    with pytest.raises(ConfigError) as caught:
        index.search(np.ones(DIM), "audio", where=expression)
    assert caught.value.code == "E-CONFIG"
    assert len(caught.value.what) <= 200
    # the connection is as usable as before
    assert len(paths(index, "1")) == 20


def test_did_you_mean(index):
    with pytest.raises(ConfigError, match=r'there is no column "pth".*Did you mean "path"'):
        paths(index, "pth = 'x'")
    with pytest.raises(ConfigError, match=r"single quotes"):
        paths(index, 'path = "x"')


def test_time_limit(index, monkeypatch):
    monkeypatch.setattr(where, "MAX_SECONDS", -1.0)
    monkeypatch.setattr(where, "STEPS", 1)
    with pytest.raises(ConfigError, match="took longer"):
        paths(index, "start >= 0")
    monkeypatch.undo()
    begin = time.monotonic()
    nested = "length(" * 20 + "path" + ")" * 20
    assert len(paths(index, f"{nested} > 0 AND path LIKE '{'%a' * 100}'")) == 0
    assert time.monotonic() - begin < 60


def test_connection_is_read_only_and_the_authorizer_stands_alone(index, monkeypatch):
    """Even without the reading of words, SQLite itself refuses."""
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        index._connection.execute("DELETE FROM files")
    monkeypatch.setattr(where, "check", lambda *_: None)
    for expression in (
        "id IN (SELECT id FROM files)",
        "EXISTS(SELECT 1 FROM info)",
        "path IN files",
        "(SELECT max(hash) FROM files) > ''",
        "1) UNION SELECT id FROM segments WHERE (1",
        "load_extension('x') IS NULL",
        "hex(path) > ''",
        "path ->> 'a' IS NULL",
        "path IN (SELECT value FROM json_each('[1]'))",
        "(SELECT 1 FROM pragma_database_list) IS NULL",
    ):
        with pytest.raises(ConfigError):
            paths(index, expression)
