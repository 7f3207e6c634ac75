"""Knobs: the lower-case globals at the top of a script, set by config files and --key=value.

    python train.py config/demo.py config/memory_efficient.py --learning_rate=3e-4 --stages[0].epochs=10

Config files are Python, executed in order with the knobs as their globals, so one may build on another.
Arguments after them win. An unknown name or a wrong type is an error, never a silent new variable.
"""
import ast
import copy
import difflib
import os
import re
import sys
import types
from typing import NoReturn


def fail(message) -> NoReturn:
    """End the program as every user error does: one line on stderr, exit status 2."""
    print(f"{os.path.basename(sys.argv[0])}: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


def configure(script: dict, positional: str | None = None) -> dict:
    """Apply sys.argv to the knobs in `script` (a module's globals()) and return them resolved, ready for JSON.

    A knob is a lower-case global assigned at the top level of the script before its first function; a name
    annotated there (`top_k: int | None = 20`) may have any of those types, others keep the type they start with.
    An argument that is neither --key=value nor a .py file sets the knob `positional`. Errors end in fail().
    """
    default = {name: script[name] for name, _ in _documented(script["__file__"])}
    allowed = {name: kind for name, kind in script.get("__annotations__", {}).items() if name in default}
    knobs = copy.deepcopy(default)
    for argument in sys.argv[1:]:
        if argument in ("--help", "-h"):
            _help(script, knobs)
        elif argument.startswith("--"):
            key, has_value, text = argument[2:].partition("=")
            _assign(knobs, default, allowed, key, text if has_value else True)
        elif argument.endswith(".py"):
            knobs = _execute(argument, knobs, default, allowed)
        elif positional is None:
            fail(f"unexpected argument {argument!r}: options are written --key=value, config files end in .py")
        else:
            _assign(knobs, default, allowed, positional, argument)
    script.update(knobs)
    return knobs


def _documented(path):
    """Yield (name, comment) of every knob: top-level assignments before the first def, with the comment beside or above."""
    with open(path, encoding="utf-8") as file:
        source = file.read()
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            return
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id.islower() and not target.id.startswith("_"):
            beside = re.search(r"#\s*(.*)$", lines[node.end_lineno - 1][node.end_col_offset:])
            above = re.match(r"#\s*(.*)$", lines[node.lineno - 2])
            yield target.id, (beside or above or [None, ""])[1]


def _help(script, knobs) -> NoReturn:
    print((script["__doc__"] or "").strip() + "\n\nknobs, set by --key=value or in a config file:")
    for name, comment in _documented(script["__file__"]):
        print(f"  --{name}={knobs[name]!r}" + (f"\n        {comment}" if comment else ""))
    sys.exit(0)


def _execute(path, knobs, default, allowed):
    try:
        with open(path, encoding="utf-8") as file:
            code = compile(file.read(), path, "exec")
        scope = copy.deepcopy(knobs)
        exec(code, scope)
    except FileNotFoundError:
        fail(f"config file {path} does not exist")
    except Exception as error:                       # whatever is wrong in a user's file, its user wants file and line
        line = getattr(error, "lineno", None)
        trace = error.__traceback__
        while trace and line is None:
            line, trace = trace.tb_lineno if trace.tb_frame.f_code.co_filename == path else None, trace.tb_next
        fail(f"config file {path}, line {line}: {type(error).__name__}: {error}")
    for name, value in list(scope.items()):
        if name.startswith("_") or isinstance(value, types.ModuleType):
            del scope[name]
        elif name not in default:
            fail(f"{path}: unknown key {name!r}{_nearest(name, default)}")
        else:
            scope[name] = _checked(name, value, default[name], allowed.get(name))
    return scope


def _assign(knobs, default, allowed, key, text):
    name, *path = [part for part in re.split(r"[.\[\]]+", key) if part]  if key.strip(".[]") else [key]
    if name not in knobs:
        fail(f"unknown key --{key}{_nearest(name, knobs)}")
    holder, last, like, kind = knobs, name, default[name], allowed.get(name)
    for part in path:
        holder, last = holder[last], int(part) if part.isdecimal() else part
        keys = range(len(holder)) if isinstance(holder, list) else holder if isinstance(holder, dict) else ()
        if last not in keys:
            fail(f"unknown key --{key}: {last!r} is not there{_nearest(last, keys)}")
        like, kind = holder[last], None
    wants_text = isinstance(like, str) and kind in (None, str)
    holder[last] = _checked(key, text if wants_text else _literal(text), like, kind)


def _literal(text):
    try:
        return {"true": True, "false": False}.get(str(text).lower()) if str(text).lower() in ("true", "false") else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text


def _checked(key, value, like, kind=None):
    """`value` as the knob may hold it; `like` is the value it replaces, `kind` its annotation if it has one."""
    kinds = (kind.__args__ if isinstance(kind, types.UnionType) else (kind,)) if kind else (type(like),)
    if type(value) is int and int not in kinds and float in kinds:
        value = float(value)
    if isinstance(value, tuple):
        value = list(value)
    if not any(type(value) is k or value is None and k is type(None) for k in kinds):
        fail(f"--{key} wants {' or '.join(k.__name__ for k in kinds)}, got {value!r}")
    if isinstance(value, list) and like and isinstance(like[0], dict):      # every entry is held to the first one's keys
        for i, entry in enumerate(value):
            for part, item in entry.items() if isinstance(entry, dict) else fail(f"--{key}[{i}] wants dict, got {entry!r}"):
                if part not in like[0]:
                    fail(f"--{key}[{i}]: unknown key {part!r}{_nearest(part, like[0])}")
                entry[part] = _checked(f"{key}[{i}].{part}", item, like[0][part])
    return value


def _nearest(name, known):
    close = difflib.get_close_matches(str(name), [str(k) for k in known], 1, 0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(map(str, known))}"
