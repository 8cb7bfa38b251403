"""The shell: one Cyclopts command per model of ``avcl.ops``.

Required fields are positional where the model says so, everything else is a named option. With ``--json`` a verb prints
one JSON object per line on standard output; everything else goes to standard error. Exit status: 0 ok · 1 a check
failed · 2 usage or configuration · 3 missing extra · 4 input media · 5 model and index do not belong together · 130
interrupted.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.exceptions import UnknownCommandError, UnknownOptionError
from pydantic_core import PydanticUndefined

from avcl import __version__
from avcl.errors import AvclError, ConfigError, did_you_mean
from avcl.files import PART, finite
from avcl.ops import VERBS, Op

ABOUT = "Deep audio-visual correlation learning: train, measure, index and search sound and picture in one space."


def main() -> None:
    """The entry point of the ``avcl`` command."""
    sys.exit(run(sys.argv[1:]))


def run(tokens: list[str]) -> int:
    """Run one command line; the exit status."""
    as_json, loud = "--json" in tokens, "-vv" in tokens
    try:
        return int(_app()(tokens, print_error=False, exit_on_error=False, result_action="return_value") or 0)
    except AvclError as error:
        return _fail(error, as_json=as_json, loud=loud)
    except CycloptsError as error:
        return _fail(_usage(error), as_json=as_json, loud=loud)
    except BrokenPipeError:
        _stop_writing()
        return 0
    except OSError as error:  # a folder that may not be written, a full disk
        return _fail(_refused(error), as_json=as_json, loud=loud)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _app() -> App:
    app = App(
        name="avcl",
        help=ABOUT,
        version=__version__,
        version_flags=["--version"],
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    groups: dict[str, App] = {}
    for verb in VERBS:
        *group, last = verb.name.split()
        if group and group[0] not in groups:
            groups[group[0]] = App(name=group[0], help="Build, update and look into an index of segments.")
            app.command(groups[group[0]])
        (groups[group[0]] if group else app).command(_command(verb), name=last, help=verb.__doc__)
    return app


def _command(verb: type[Op]) -> Callable[..., int]:
    """A function with the signature that the fields of ``verb`` describe, for Cyclopts to parse."""
    parameters = []
    fields = verb.model_fields
    for name in [*verb.positional, *(n for n in fields if n not in verb.positional)]:
        field = fields[name]
        required = field.default is PydanticUndefined and field.default_factory is None
        default = inspect.Parameter.empty if required else field.get_default(call_default_factory=True)
        positional = name in verb.positional
        option: dict[str, Any] = {"help": field.description, "negative": ()}
        if positional:
            option["name"] = name.removesuffix("_folder").upper()
        elif name == "k":
            option["name"] = ["-k", "--k"]
        elif name == "out":
            option["name"] = ["--out", "-o"]
        if isinstance(default, list) and not positional:
            option |= {"consume_multiple": True, "show_default": False}
            default = None
        kind = inspect.Parameter.POSITIONAL_ONLY if positional else inspect.Parameter.KEYWORD_ONLY
        annotation: Any = field.annotation
        if default is None and not required:
            annotation = annotation | None
        parameters.append(
            inspect.Parameter(name, kind, default=default, annotation=Annotated[annotation, Parameter(**option)])
        )
    switches = {
        "json": (["--json"], "print one JSON object per line on standard output"),
        "quiet": (["--quiet", "-q"], "no progress on standard error"),
        "debug": (["-vv"], "show the traceback of an error"),
    }
    for name, (names, about) in switches.items():
        annotation = Annotated[bool, Parameter(name=names, negative=(), help=about, group="Output")]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation))

    def command(*args: Any, json: bool, quiet: bool, debug: bool, **options: Any) -> int:
        values = dict(zip(verb.positional, args, strict=False)) | options
        op = verb.parse({key: value for key, value in values.items() if value is not None})
        return _execute(op, as_json=json, progress=not quiet)

    signature = inspect.Signature(sorted(parameters, key=lambda p: p.kind), return_annotation=int)

    def bind(*args: Any, **kwargs: Any) -> int:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return command(*bound.args, **bound.kwargs)

    bind.__signature__ = signature  # type: ignore[attr-defined]
    bind.__annotations__ = {p.name: p.annotation for p in parameters}
    bind.__name__ = verb.name.replace(" ", "_")
    bind.__doc__ = verb.__doc__
    return bind


def _execute(op: Op, *, as_json: bool, progress: bool) -> int:
    results = []
    for result in op.run(progress=progress):
        results.append(result)
        print(json.dumps(finite(result)) if as_json else op.human(result), flush=True)
    if not as_json and (words := op.closing(results)):
        print(words, flush=True)
    return op.status(results)


def _usage(error: CycloptsError) -> ConfigError:
    """A parsing error in our own words: Cyclopts shows raw text of pydantic and of Python types."""
    verb = " ".join(error.command_chain or ())
    if isinstance(error, UnknownCommandError):
        word = error.unused_tokens[0] if error.unused_tokens else ""
        if word.startswith("-"):
            return ConfigError(
                f"avcl {verb}".rstrip() + " needs a verb.", hint=f"See avcl {verb} --help.".replace("  ", " ")
            )
        words = {v.name.split()[-1] if verb else v.name.split()[0] for v in VERBS if v.name.startswith(verb)}
        return ConfigError(
            f'"{word}" is not a verb of avcl{" " + verb if verb else ""}.', hint=did_you_mean(word, words)
        )
    if isinstance(error, UnknownOptionError):
        word = str(getattr(error.token, "keyword", None) or getattr(error.token, "value", ""))
        known = {f"--{name.replace('_', '-')}" for v in VERBS if v.name == verb for name in v.model_fields}
        return ConfigError(f'"{word}" is not an option of avcl {verb}.', hint=did_you_mean(word, known | {"--json"}))
    return ConfigError(" ".join(str(error).split()), hint=f"See avcl {verb} --help.".replace("  ", " "))


def _refused(error: OSError) -> ConfigError:
    """What the operating system refused, in its words and with the file it is about."""
    words = (error.strerror or type(error).__name__).lower()
    name = error.filename2 or error.filename
    if name is not None and Path(str(name)).name.startswith(PART):  # a temporary file: its folder is what is meant
        name = Path(str(name)).parent
    return ConfigError(
        f"{words}.",
        file=None if name is None else str(name),
        hint="Check the path, who may write there, and the free space.",
    )


def _fail(error: AvclError, *, as_json: bool, loud: bool) -> int:
    if loud:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    print(error, file=sys.stderr)
    if as_json:
        try:
            print(json.dumps(error.as_dict()), flush=True)
        except BrokenPipeError:
            _stop_writing()
    return error.exit


def _stop_writing() -> None:
    """The reader of our output went away, as ``| head`` does: what is still to be flushed goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
