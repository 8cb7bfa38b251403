"""The rows of an index in SQLite: files, segments, what was skipped, the user's columns, and the state of the vector
files.

Write-ahead logging: one writer, any number of readers, each of which sees the state of one commit.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from avcl.errors import ConfigError, LockedError, StoreError

NAME = "rows.sqlite"
MODALITIES = ("audio", "video")  # each has a column of slots in ``segments`` and a vector file
OWN_COLUMNS = (
    "path",
    "folder",
    "name",
    "suffix",
    "size",
    "duration",
    "start",
    "end",
    "silent",
    "audio",
    "video",
)
VERSION = 1
SCHEMA = (
    "CREATE TABLE state(key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    # done 0: a long file that is being indexed in parts; ``reached`` is the number of the segment to go on with
    """CREATE TABLE files(id INTEGER PRIMARY KEY, path TEXT UNIQUE NOT NULL, folder TEXT NOT NULL, name TEXT NOT NULL,
       suffix TEXT NOT NULL, hash TEXT NOT NULL, size INTEGER NOT NULL, mtime INTEGER NOT NULL, duration REAL,
       crawled INTEGER NOT NULL, done INTEGER NOT NULL, reached INTEGER NOT NULL)""",
    "CREATE INDEX files_hash ON files(hash)",
    """CREATE TABLE segments(id INTEGER PRIMARY KEY, file INTEGER NOT NULL REFERENCES files(id) ON DELETE CASCADE,
       start REAL NOT NULL, "end" REAL NOT NULL, silent INTEGER NOT NULL, audio INTEGER, video INTEGER,
       UNIQUE(file, start, "end"))""",
    """CREATE TABLE skipped(path TEXT PRIMARY KEY, hash TEXT, size INTEGER, mtime INTEGER, code TEXT NOT NULL,
       message TEXT NOT NULL, time REAL)""",
    "CREATE TABLE extra(path TEXT PRIMARY KEY)",
)


class FileFacts(NamedTuple):
    """A file on the disk: path below the media folder, hash of its bytes, size, time of change in nanoseconds."""

    path: str
    hash: str
    size: int
    mtime: int


def create(folder: Path) -> None:
    """An empty ``rows.sqlite`` in ``folder``."""
    with typed(folder), closing(sqlite3.connect(folder / NAME, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        with transaction(connection):
            for statement in SCHEMA:
                connection.execute(statement)
            make_view(connection, ())
            set_state(connection, "generation", 0)
            set_state(connection, "columns", [])
            connection.execute(f"PRAGMA user_version = {VERSION}")


def connect(folder: Path, *, write: bool = False) -> sqlite3.Connection:
    """A connection to the rows: read-only unless ``write``. StoreError where they are missing or damaged."""
    path = folder / NAME
    if not path.is_file():
        raise StoreError("the index has no rows.", file=path, hint="Build it again.")
    uri = path.resolve().as_uri()
    with typed(folder):
        connection = sqlite3.connect(
            f"{uri}?mode={'rw' if write else 'ro'}", uri=True, isolation_level=None, check_same_thread=False, timeout=30
        )
        try:
            try:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
            except sqlite3.OperationalError:
                # A folder that may not be written to (a read-only disk) cannot hold the shared memory of the log.
                log = folder / (NAME + "-wal")
                if write or (log.exists() and log.stat().st_size):
                    raise
                connection.close()
                connection = sqlite3.connect(
                    f"{uri}?mode=ro&immutable=1", uri=True, isolation_level=None, check_same_thread=False
                )
                version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version != VERSION:
                raise StoreError(f"the rows have format {version}, not {VERSION}.", file=path, hint="Build it again.")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA synchronous = {'FULL' if write else 'NORMAL'}")
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def typed(folder: Path) -> Iterator[None]:
    """What SQLite and the disk complain about, as errors of this package (FileNotFoundError passes: readers look
    again).
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"the index cannot be read or written ({error.strerror}).", file=folder) from None
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise LockedError("the rows of the index are being written.", file=folder, hint="Try again.") from None
        if code == sqlite3.SQLITE_FULL:
            raise StoreError(
                "the disk is full.", file=folder, hint="Make room and run the same command again."
            ) from None
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            raise StoreError(f"the rows cannot be opened ({error}).", file=folder, hint="Check permissions.") from None
        raise StoreError(
            f"the rows of the index are damaged ({error})."[:180], file=folder / NAME, hint="Build the index again."
        ) from None


@contextmanager
def transaction(connection: sqlite3.Connection, *, write: bool = True) -> Iterator[None]:
    """All or nothing. For readers: everything inside sees the same commit."""
    connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def get_state(connection: sqlite3.Connection, key: str, default: Any = None) -> Any:
    row = connection.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
    try:
        return default if row is None else json.loads(row[0])
    except ValueError:
        raise sqlite3.DatabaseError(f"state {key} is not readable") from None


def set_state(connection: sqlite3.Connection, key: str, value: Any) -> None:
    connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, json.dumps(value)))


def bump(connection: sqlite3.Connection) -> None:
    """Readers compare this number with the one they have loaded."""
    set_state(connection, "generation", get_state(connection, "generation", 0) + 1)


# --------------------------------------------------------------------------------------------------- the user's columns
def make_view(connection: sqlite3.Connection, extra: Sequence[str]) -> None:
    """The view ``info``: one row per segment of every finished file; its columns are what ``where`` may use."""
    further = "".join(f', e."{name}" AS "{name}"' for name in extra)
    connection.execute("DROP VIEW IF EXISTS info")
    connection.execute(
        f"""CREATE VIEW info AS SELECT s.id AS id, f.path AS path, f.folder AS folder, f.name AS name,
        f.suffix AS suffix, f.size AS size, f.duration AS duration, s.start AS start, s."end" AS "end",
        s.silent AS silent, s.audio IS NOT NULL AS audio, s.video IS NOT NULL AS video{further}
        FROM files f JOIN segments s ON s.file = f.id LEFT JOIN extra e ON e.path = f.path WHERE f.done"""
    )


def columns(connection: sqlite3.Connection) -> tuple[str, ...]:
    """The names that ``where`` may use: our own, then the user's."""
    return (*OWN_COLUMNS, *get_state(connection, "columns", []))


def set_columns(connection: sqlite3.Connection, names: Sequence[str], table: Sequence[Sequence[Any]]) -> None:
    """Replace the user's columns: ``table`` has one row (path, value, …) per file. Call inside a transaction."""
    connection.execute("DROP VIEW IF EXISTS info")
    connection.execute("DROP TABLE IF EXISTS extra")
    connection.execute("CREATE TABLE extra(path TEXT PRIMARY KEY" + "".join(f', "{name}"' for name in names) + ")")
    marks = ", ".join("?" for _ in range(len(names) + 1))
    try:
        connection.executemany(f"INSERT INTO extra VALUES ({marks})", table)
    except sqlite3.IntegrityError:
        paths = [row[0] for row in table]
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ConfigError(f'the columns have the path "{twice}" twice.') from None
    make_view(connection, names)
    set_state(connection, "columns", list(names))
