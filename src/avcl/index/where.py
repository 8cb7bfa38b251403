"""``where``: an SQLite expression over the columns of the view ``info``, and nothing else.

Three fences, one behind the other: the text is read word by word (known columns, a short list of operators and
functions, no statement, comment or second query); SQLite compiles it under an authorizer that allows one SELECT,
reads of ``info`` and those functions; and it runs on a read-only connection with limits on length, depth and time.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator

from avcl.errors import ConfigError, did_you_mean

MAX_LENGTH = 4000  # characters
MAX_SECONDS = 5.0
STEPS = 10_000  # of the virtual machine between two looks at the watch
_KEYWORDS = """and or not in is null isnull notnull like glob between escape case when then else end cast as collate
nocase binary rtrim true false integer real text numeric"""
_FUNCTIONS = """abs ceil ceiling coalesce floor glob ifnull iif instr length like lower ltrim max min nullif round rtrim
sign substr substring trim typeof upper"""
KEYWORDS = frozenset(_KEYWORDS.split())
FUNCTIONS = frozenset(_FUNCTIONS.split())
_TOKEN = re.compile(
    r"""\s+
    | (?P<string>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\])
    | (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<word>[^\W\d]\w*)
    | (?P<comment>--|/\*)
    | (?P<sign>\|\||<=|>=|<>|!=|==|<<|>>|[-+*/%&|~=<>(),])
    """,
    re.VERBOSE,
)


def rows_where(connection: sqlite3.Connection, expression: str, columns: tuple[str, ...]) -> list[int]:
    """The ids of the rows of ``info`` for which ``expression`` holds; ConfigError where it is not such an expression.

    ``connection`` must be read-only. ``columns``: the names that may be used.
    """
    check(expression, columns)
    selects = 0

    def authorize(action: int, first: str | None, second: str | None, _base: str | None, inner: str | None) -> int:
        nonlocal selects
        if action == sqlite3.SQLITE_SELECT:
            selects += inner is None
            return sqlite3.SQLITE_OK if selects <= 1 else sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_READ:  # the view itself, and the tables below it when the view is what reads them
            return sqlite3.SQLITE_OK if first == "info" or inner == "info" else sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_FUNCTION:
            return sqlite3.SQLITE_OK if str(second).lower() in FUNCTIONS else sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_DENY

    deadline = time.monotonic() + MAX_SECONDS
    old = {
        limit: connection.setlimit(limit, value)
        for limit, value in (
            (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200),
            (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 500),
            (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 1),
            (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        )
    }
    connection.set_authorizer(authorize)
    connection.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)
    try:
        return [row[0] for row in connection.execute(f"SELECT id FROM info WHERE (\n{expression}\n)")]
    except sqlite3.DatabaseError as error:
        if damaged(error):
            raise
        if "interrupted" in str(error):
            raise ConfigError(f"where took longer than {MAX_SECONDS:g} s.", hint="Use a simpler expression.") from None
        raise _refusal(f"SQLite says: {error}", columns) from None
    except (sqlite3.Warning, ValueError, UnicodeError) as error:
        raise _refusal(str(error), columns) from None
    finally:
        connection.set_authorizer(None)
        connection.set_progress_handler(None, 0)
        for limit, value in old.items():
            connection.setlimit(limit, value)


def damaged(error: sqlite3.DatabaseError) -> bool:
    """Whether SQLite complains about the file rather than about the statement."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
    )


def check(expression: str, columns: tuple[str, ...]) -> None:
    """ConfigError unless ``expression`` is made of known columns, literals, operators and functions, in balanced
    brackets.
    """
    if not expression.strip():
        raise ConfigError(
            "where is empty.", hint="Leave it out, or give an expression such as \"path GLOB 'glass/*'\"."
        )
    if len(expression) > MAX_LENGTH:
        raise ConfigError(f"where has {len(expression)} characters; at most {MAX_LENGTH} are allowed.")
    tokens = list(_tokens(expression, columns))
    known = {name.lower() for name in columns}
    depth = 0
    for at, (kind, text) in enumerate(tokens):
        called = at + 1 < len(tokens) and tokens[at + 1] == ("sign", "(")
        if text in ("(", ")") and kind == "sign":
            depth += 1 if text == "(" else -1
            if depth < 0:
                raise _refusal("a bracket is closed that was not opened.", columns)
        elif kind == "quoted" and text.lower() not in known:
            hint = f"Text stands in single quotes. {did_you_mean(text, set(columns))}"
            raise ConfigError(f'where: there is no column "{text}".', hint=hint)
        elif kind == "word":
            word = text.lower()
            if called and word not in FUNCTIONS and word not in KEYWORDS:
                raise ConfigError(f"where: {text}() cannot be used.", hint=did_you_mean(word, set(FUNCTIONS)))
            if not called and word not in known and word not in KEYWORDS:
                raise ConfigError(f'where: there is no column "{text}".', hint=did_you_mean(text, set(columns)))
    if depth:
        raise _refusal("a bracket is not closed.", columns)


def _tokens(expression: str, columns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(expression):
        match = _TOKEN.match(expression, at)
        if match is None or match.lastgroup == "comment":
            raise _refusal(f"{expression[at : at + 2].strip()!r} cannot be used.", columns)
        at = match.end()
        if match.lastgroup is None:
            continue
        text = match.group()
        if match.lastgroup == "quoted":
            text = text[1:-1].replace('""', '"')
        if match.lastgroup == "word" and text.lower() == "x" and expression[at : at + 1] == "'":
            raise _refusal("a blob cannot be used.", columns)
        yield match.lastgroup, text


def _refusal(what: str, columns: tuple[str, ...]) -> ConfigError:
    return ConfigError(f"where: {what}"[:180], hint=f"Give one expression over {', '.join(columns)}.")
