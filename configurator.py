"""Knobs: lower-case globals at the top of a script, set by config files and --key=value.

    python train.py config/demo.py config/memory_efficient.py --learning_rate=3e-4 --stages[0].epochs=10

Config files are Python, run in order with the knobs as globals, or a run's saved config.json. Unknown names,
wrong types and values outside the range that ends a knob's comment are errors.
"""
import ast
import contextlib
import copy
import dataclasses
import difflib
import hashlib
import json
import os
import re
import sys
import textwrap
import traceback
import types
from decimal import Decimal
from pathlib import Path


def fail(message):
    """End the program as every user error does: one line on stderr, exit status 2."""
    line = textwrap.shorten(str(message), 1500, placeholder=" ...")
    print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr)
    sys.exit(2)


def run_script(main):
    """A script's main, which Ctrl-C and a reader that stops early end quietly."""
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # what is printed has no file's name
        fail(f"{error.filename or 'cannot print'}: {error.strerror or error}")
    except SystemExit:
        with contextlib.suppress(OSError):  # Python would complain of what cannot be printed
            sys.stdout.flush()
        raise


@contextlib.contextmanager
def written(path, mode="w"):
    """A file to write, which takes the place of `path` when it is whole. Where that fails nothing is left of
    it, and an OSError names `path`."""
    aside = f"{path}.writing"
    try:
        with open(aside, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(aside)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def write_json(path, value):
    """JSON, `written`."""
    with written(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)


def prepared(name):
    """The folder of a prepared book; without a name, of the last. fail() where there is none."""
    try:
        name = name or Path("data/latest").read_text("utf-8").strip()
    except OSError:
        fail("no book has been prepared here: run python prepare.py book.txt first")
    if not Path("data", name, "tokenizer.json").exists():
        known = sorted(path.parent.name for path in Path("data").glob("*/tokenizer.json"))
        fail(f"data/{name} was never prepared; prepared here: {', '.join(known) or 'none'}; "
             "run python prepare.py BOOK.txt")
    return Path("data", name)


def read_stream(folder, name):
    """(tokens (N,) uint16, offsets (n + 1,) of its examples, the tokens' SHA-256), or fail()."""
    import numpy as np
    try:
        offsets = np.fromfile(folder / f"{name}.idx", "<i8")
        tokens = np.memmap(folder / f"{name}.bin", "<u2", "r")
        if len(offsets) < 2 or offsets[-1] != len(tokens):
            raise ValueError
    except (OSError, ValueError):
        fail(f"{folder}/{name}.bin or .idx is missing or torn: prepare the book again with prepare.py")
    return tokens, offsets, hashlib.sha256(tokens).hexdigest()


def configure(script, positional=None, base=(), arguments=None):
    """Apply `arguments`, or sys.argv's, to the knobs in `script` (a module's globals()) -> dict of them, for
    JSON. What `base` has (a resumed run's, say) takes the place of defaults.

    A knob is a lower-case global assigned before the script's first function, of the type it has there or
    those in its annotation (`top_k: int | None = 20`); a dataclass's fields and a dict's keys are knobs too.
    One argument that is neither --key=value nor a .py or .json file sets `positional`.
    """
    comments = dict(documented(script["__file__"]))
    default = {name: script[name] for name in comments}
    kinds = script.get("__annotations__", {})  # types by knob or knob.field
    groups = {name: value for name, value in default.items() if dataclasses.is_dataclass(value)}
    for name, group in groups.items():
        default[name] = dataclasses.asdict(group)
        kinds = kinds | {f"{name}.{field.name}": field.type for field in dataclasses.fields(group)}
    knobs = copy.deepcopy(default)
    for name in default.keys() & base:
        knobs[name] = checked(name, base[name], default[name], kinds)
    for argument in arguments or sys.argv[1:]:
        if argument in ("--help", "-h"):
            print(script["__doc__"].strip() + "\n\nknobs, set by --key=value or in a config file:")
            for name, comment in comments.items():
                fields = dataclasses.fields(groups[name]) if name in groups else ()
                known = [(f.name, knobs[name][f.name], f.metadata["meaning"]) for f in fields]
                for key, value, meaning in known or [(name, knobs[name], comment)]:
                    print(f"  --{key}={value!r}\n        {meaning}".rstrip())
            sys.stdout.flush()
            sys.exit(0)
        elif argument.startswith("--"):
            key, has_value, text = argument[2:].partition("=")
            assign(knobs, default, kinds, key, text if has_value else True)
        elif argument.endswith((".py", ".json")):
            execute(argument, knobs, default, kinds)
        elif positional:
            assign(knobs, default, kinds, positional, argument)
            positional = None
        else:
            fail(f"unexpected argument {argument!r}: options are --key=value, config files *.py; text with "
                 "spaces wants quotes")
    for name, comment in comments.items():
        in_range(name, knobs[name], comment)
    try:
        script.update(knobs | {name: type(group)(**knobs[name]) for name, group in groups.items()})
    except ValueError as error:
        fail(f"--{error}")
    return knobs


def documented(path):
    """Yield (name, comment beside or above it) of every knob of the script at `path`."""
    lines = Path(path).read_bytes().splitlines()
    for node in ast.parse(b"\n".join(lines)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            return
        target = getattr(node, "targets", [getattr(node, "target", None)])[0]
        if isinstance(target, ast.Name) and target.id.islower() and target.id[0] != "_":
            near = lines[node.end_lineno - 1][node.end_col_offset:] + b"\n" + lines[node.lineno - 2]
            found = re.search(r"^\s*#\s*(.*)", near.decode(), re.M)
            yield target.id, found[1].strip() if found else ""


def in_range(name, value, comment):
    """fail() where a comment rules a knob's value out: it ends in a range of numbers, as [0, 1) or [1, ...),
    of each in a list, which is not empty; or in the words it may be, as {cooccurrence, normal}."""
    found = re.search(r"\{(.+)\}$|[\[(]([-\d.e]+), ([-\d.e]+)[\])]$", comment)
    if not found:
        return
    limits, words, low, high = found.group(0, 1, 2, 3)
    if words:
        fine = value in words.split(", ")
    else:
        least, most = float(low), float(high.replace("...", "inf"))
        several = value if isinstance(value, list) else [value]
        fine = several and all(
            least < x < most or x == least and limits[0] == "[" or x == most and limits[-1] == "]"
            for x in several if isinstance(x, int | float))
    if not fine:
        fail(f"--{name} lies in {limits}, got {shown(value)}; it is: {comment.removesuffix(limits).strip()}")


def execute(path, knobs, default, kinds):
    """Set what a config file assigns in place; modules and names with an underscore are its own."""
    scope = copy.deepcopy(knobs)
    try:
        text = Path(path).read_text("utf-8")
        if path.endswith(".json"):
            scope |= json.loads(text)
        else:
            exec(compile(text, path, "exec"), scope)
    except OSError as error:
        fail(f"config file {path}: {error.strerror}")
    except Exception as error:  # whatever it is, its user wants file and line
        frames = traceback.extract_tb(error.__traceback__)
        *_, line = getattr(error, "lineno", None), *(f.lineno for f in frames if f.filename == path)
        fail(f"config file {path}{f', line {line}' if line else ''}: {type(error).__name__}: {error}")
    for name, value in scope.items():
        if name in default:
            knobs[name] = checked(name, value, default[name], kinds)
        elif not (str(name).startswith("_") or isinstance(value, types.ModuleType)):
            holder = home(name, default, f"{path}: unknown key {name!r}")
            knobs[holder][name] = checked(f"{holder}.{name}", value, default[holder][name], kinds)


def home(name, knobs, unknown):
    """The knob that holds the key `name`, or fail(unknown)."""
    homes = {key: knob for knob, value in knobs.items() if isinstance(value, dict) for key in value}
    if name not in homes:
        fail(f"{unknown}{nearest(name, [*knobs, *homes])}")
    return homes[name]


def assign(knobs, default, kinds, key, text):
    """Set --key=text in place; keys lead into lists and dicts: stages[0].epochs or stages.0.epochs."""
    name, *path = re.sub(r"\[(\w+)\]", r".\1", key).split(".")
    if name not in knobs:
        name, path = home(name, knobs, f"unknown key --{key}"), [name, *path]
    holder, last, like = knobs, name, default[name]
    for part in path:
        holder, last = holder[last], int(part) if part.isdecimal() and len(part) < 9 else part
        keys = range(len(holder)) if isinstance(holder, list) else holder if isinstance(holder, dict) else ()
        if last not in keys:
            fail(f"unknown key --{key}: there is no {last!r}{nearest(last, keys)}")
        like = holder[last]
    kind = kinds.get(".".join([name, *path]))
    allowed = getattr(kind, "__args__", (kind or type(like),))
    if text is True and bool not in allowed:
        fail(f"--{key} wants a value, written --{key}=VALUE")
    if text is not True and allowed != (str,):
        # no literal, or one too deep, stays a string
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            text = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    holder[last] = checked(key, text, like, kinds | {key: kind})


def checked(key, value, like, kinds):
    """`value` if the knob may hold it: of its types in `kinds`, else that of `like`, which it replaces."""
    kind = kinds.get(key) or type(like)
    allowed = getattr(kind, "__args__", (kind,))
    if type(value) is int and int not in allowed and float in allowed:
        value = float(Decimal(value))  # inf where float(value) overflows
    value = list(value) if isinstance(value, tuple) else value
    if type(value) not in allowed:
        names = ("None" if k is types.NoneType else k.__name__ for k in allowed)
        fail(f"--{key} wants {' or '.join(names)}, got {shown(value)}")
    # entries are held to the first one's shape
    if isinstance(value, list) and like and isinstance(like[0], dict | float | int):
        return [checked(f"{key}[{i}]", entry, like[0], kinds) for i, entry in enumerate(value)]
    if isinstance(value, dict) and isinstance(like, dict):
        for part in value.keys() - like.keys():
            fail(f"--{key}: unknown key {part!r}{nearest(part, like)}")
        return like | {part: checked(f"{key}.{part}", item, like[part], kinds)
                       for part, item in value.items()}
    return value


def shown(value):
    """A value for a message."""
    try:
        text = repr(value)
    except ValueError:
        text = "a number of thousands of digits"
    return text if len(text) < 300 else text[:300] + " ..."


def nearest(name, known):
    """The end of a message: the known key most like this, or all."""
    close = difflib.get_close_matches(str(name), map(str, known), 1, 0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(map(str, known))}"
