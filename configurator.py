"""Knobs: the lower-case globals at the top of a script, set by config files and --key=value.

    python train.py config/demo.py config/memory_efficient.py --learning_rate=3e-4 --stages[0].epochs=10

Config files are Python, executed in order with the knobs as their globals, or a run's saved config.json.
Unknown names, wrong types and values outside the range that ends a knob's comment are errors.
"""
import ast
import contextlib
import copy
import dataclasses
import difflib
import json
import math
import os
import re
import sys
import traceback
import types
from typing import NoReturn


def fail(message) -> NoReturn:
    """End the program as every user error does: one line on stderr, of no endless length, exit status 2."""
    text = " ".join(str(message).split())
    text = text if len(text) < 1500 else text[:1500] + " ..."
    print(f"{os.path.basename(sys.argv[0])}: {text}", file=sys.stderr)
    sys.exit(2)


def run_script(main):
    """A script's main, which Ctrl-C and a reader that has seen enough (`| head`) end quietly."""
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:    # what is printed has no file's name
        fail(f"{error.filename or 'cannot print'}: {error.strerror or error}")
    except SystemExit:
        # what could not be printed would be tried, and complained of, once more
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        raise


@contextlib.contextmanager
def written(path, mode: str = "w"):
    """A file to write that takes the place of `path` when it is whole: whoever reads `path` finds all of the
    old content or all of the new. Where the disk is full nothing is left of it, and the OSError names it."""
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


def write_json(path: str, value) -> None:
    """JSON, `written`."""
    with written(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)


def configure(script: dict, positional: str | None = None, base: dict | None = None) -> dict:
    """Apply sys.argv to the knobs in `script` (a module's globals()) and return them resolved,
    ready for JSON. Where `base` has values (a resumed run's, say), they stand in the place of the
    defaults.

    A knob is a lower-case global assigned before the script's first function. One annotated there
    (`top_k: int | None = 20`) may have any of those types, others keep the type they start with.
    The fields of a knob that is a dataclass, and the keys of one that is a dict, are knobs too. An
    argument that is neither --key=value nor a .py file sets `positional`.
    """
    default = {name: script[name] for name, _ in documented(script["__file__"])}
    kinds = {name: kind for name, kind in script.get("__annotations__", {}).items() if name in default}
    groups = {name: value for name, value in default.items() if dataclasses.is_dataclass(value)}
    for name, group in groups.items():
        default[name] = dataclasses.asdict(group)
        kinds |= {f"{name}.{field.name}": field.type for field in dataclasses.fields(group)}
    knobs = copy.deepcopy(default)
    for name in default.keys() & (base or {}).keys():
        knobs[name] = checked(name, base[name], default[name], kinds)
    for argument in sys.argv[1:]:
        if argument in ("--help", "-h"):
            print((script["__doc__"] or "").strip() + "\n\nknobs, set by --key=value or in a config file:")
            for name, comment in documented(script["__file__"]):
                fields = dataclasses.fields(groups[name]) if name in groups else ()
                known = [(f.name, knobs[name][f.name], f.metadata["meaning"]) for f in fields]
                for key, value, meaning in known or [(name, knobs[name], comment)]:
                    print(f"  --{key}={value!r}" + (f"\n        {meaning}" if meaning else ""))
            sys.stdout.flush()
            sys.exit(0)
        elif argument.startswith("--"):
            key, has_value, text = argument[2:].partition("=")
            assign(knobs, default, kinds, key, text if has_value else True)
        elif argument.endswith((".py", ".json")):
            knobs = execute(argument, knobs, default, kinds)
        else:
            if not positional:
                fail(f"unexpected argument {argument!r}: options are --key=value, config files end in .py")
            assign(knobs, default, kinds, positional, argument)
    for name, comment in documented(script["__file__"]):
        in_range(name, knobs[name], comment)
    try:
        script.update(knobs | {name: type(group)(**knobs[name]) for name, group in groups.items()})
    except ValueError as error:
        fail(f"--{error}")
    return knobs


def documented(path: str):
    """Yield (name, comment) of every knob of the script at `path`; the comment stands beside it, or
    on the line above."""
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            return
        target = getattr(node, "targets", [getattr(node, "target", None)])[0]
        if isinstance(target, ast.Name) and target.id.islower() and not target.id.startswith("_"):
            beside = lines[node.end_lineno - 1].encode()[node.end_col_offset:].decode()
            comments = [text.strip()[1:].strip() for text in (beside, lines[node.lineno - 2])
                        if text.strip().startswith("#")]
            yield target.id, comments[0] if comments else ""


def in_range(name: str, value, comment: str) -> None:
    """End in fail() where a knob has a value that its comment rules out: the comment ends in the numbers it
    may be, as [0, 1) or [1, ...), or in the words, as {cooccurrence, normal}. Where a knob takes numbers and
    words, the range is that of the numbers; a list has one number at least, and each lies in it."""
    *_, limits = ["", *re.findall(r"[\[({][^\[({]*[\])}]$", comment)]
    low, _, high = limits[1:-1].partition(", ")

    def within(x):
        least, most = float(low), float(high.replace("...", "inf"))
        return least < x < most or x == least and limits[0] == "[" or x == most and limits[-1] == "]"
    fine = True
    if limits.startswith("{"):
        fine = value in limits[1:-1].split(", ")
    elif high:
        several = value if isinstance(value, list) else [value]
        fine = several and all(within(x) for x in several if isinstance(x, (int, float)))
    if not fine:
        fail(f"--{name} lies in {limits}, got {shown(value)}; it is: {comment.removesuffix(limits).strip()}")


def execute(path: str, knobs: dict, default: dict, kinds: dict) -> dict:
    """Run a config file on a copy of the knobs and return them, checked; names with an underscore
    and modules are its own affair."""
    scope = copy.deepcopy(knobs)
    try:
        with open(path, encoding="utf-8") as file:
            if path.endswith(".json"):
                scope |= json.load(file)
            else:
                exec(compile(file.read(), path, "exec"), scope)
    except OSError as error:
        fail(f"config file {path}: {error.strerror}")
    except Exception as error:  # whatever is wrong in a user's file, its user wants file and line
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        fail(f"config file {path}{f', line {line}' if line else ''}: {type(error).__name__}: {error}")
    scope = {name: value for name, value in scope.items()
             if not str(name).startswith("_") and not isinstance(value, types.ModuleType)}
    fields = [name for name in scope if name not in default]
    # what the file deletes stays as it is
    result = knobs | {name: checked(name, value, default[name], kinds)
                      for name, value in scope.items() if name in default}
    for name in fields:
        holder = home(name, default) or fail(f"{path}: unknown key {name!r}{nearest(name, default)}")
        result[holder] = result[holder] | {name: checked(f"{holder}.{name}", scope[name],
                                                         default[holder][name], kinds)}
    return result


def home(name: str, knobs: dict) -> str | None:
    """The knob that holds the key `name`."""
    return next((knob for knob, value in knobs.items() if isinstance(value, dict) and name in value), None)


def assign(knobs: dict, default: dict, kinds: dict, key: str, text) -> None:
    """Set --key=text in place; a key may lead into lists and dicts, as stages[0].epochs or
    stages.0.epochs."""
    name, *path = re.sub(r"\[(\w+)\]", r".\1", key).split(".")
    if name not in knobs:
        known = [*knobs, *(part for value in knobs.values() if isinstance(value, dict) for part in value)]
        name, path = home(name, knobs) or fail(f"unknown key --{key}{nearest(name, known)}"), [name, *path]
    holder, last, like, kind = knobs, name, default[name], kinds.get(name)
    for part in path:
        holder, last = holder[last], int(part) if part.isdecimal() and len(part) < 9 else part
        keys = range(len(holder)) if isinstance(holder, list) else holder if isinstance(holder, dict) else ()
        if last not in keys:
            fail(f"unknown key --{key}: there is no {last!r}{nearest(last, keys)}")
        like, kind = holder[last], kinds.get(f"{name}.{last}")
    # a text knob takes its text as it stands
    if text is True and not isinstance(like, bool) and bool not in getattr(kind, "__args__", ()):
        fail(f"--{key} wants a value, written --{key}=VALUE")
    if not isinstance(text, bool) and not (isinstance(like, str) and kind in (None, str)):
        # not a literal, or one too deep: a string, if the type allows one
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            text = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    holder[last] = checked(key, text, like, {key: kind})


def checked(key: str, value, like, kinds: dict):
    """`value` if the knob may hold it: one of the types in its annotation in `kinds`, else that of
    `like`, the value it replaces."""
    kind = kinds.get(key)
    allowed = (kind.__args__ if isinstance(kind, types.UnionType) else (kind,)) if kind else (type(like),)
    if type(value) is int and int not in allowed and float in allowed:
        try:
            value = float(value)
        except OverflowError:
            value = math.inf if value > 0 else -math.inf
    value = list(value) if isinstance(value, tuple) else value
    if type(value) not in allowed:
        names = ("None" if k is types.NoneType else k.__name__ for k in allowed)
        fail(f"--{key} wants {' or '.join(names)}, got {shown(value)}")
    # entries are held to the first one's shape
    if isinstance(value, list) and like and isinstance(like[0], (dict, float, int)):
        return [checked(f"{key}[{i}]", entry, like[0], kinds) for i, entry in enumerate(value)]
    if isinstance(value, dict) and isinstance(like, dict):
        for part in value.keys() - like.keys():
            fail(f"--{key}: unknown key {part!r}{nearest(part, like)}")
        return like | {part: checked(f"{key}.{part}", item, like[part], kinds)
                       for part, item in value.items()}
    return value


def shown(value) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:
        text = "a number of thousands of digits"    # more than Python writes
    return text if len(text) < 300 else text[:300] + " ..."


def nearest(name, known) -> str:
    """The end of an unknown key's message: the known key most like it, or all of them."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], 1, 0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(map(str, known))}"
