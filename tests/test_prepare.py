"""prepare.py as its users run it: real books, real files, real processes."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from prepare import Tokenizer  # noqa: E402

STREAMS = ("stage1_train", "stage2_train", "stage3_train", "val", "test")


def find_book():
    """Frankenstein where it is at hand, otherwise the book that comes with the repository."""
    for folder in (os.environ.get("BOOKS"), ROOT.parent / "shared/books"):
        if folder and (path := Path(folder) / "frankenstein.txt").exists():
            return path
    return ROOT / "book.txt"


def prepare(folder, *arguments, **environment):
    return subprocess.run([sys.executable, ROOT / "prepare.py", *map(str, arguments)], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, **environment}, timeout=300)


def examples(data, stream):
    ids, index = np.fromfile(data / f"{stream}.bin", "<u2"), np.fromfile(data / f"{stream}.idx", "<i8")
    assert index[0] == 0 and index[-1] == len(ids) and (np.diff(index) > 0).all()
    return [ids[a:b].tolist() for a, b in zip(index, index[1:])]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    run = prepare(folder, find_book())
    assert run.returncode == 0, run.stderr
    return folder / "data" / (folder / "data" / "latest").read_text().strip()


@pytest.fixture(scope="session")
def tokenizer(data):
    return Tokenizer.load(data / "tokenizer.json")


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special.values())


def test_held_out_text_is_in_no_training_stream(data):
    def grams(example):
        return {tuple(example[i:i + 8]) for i in range(len(example) - 7)}

    training_text = set().union(*map(grams, examples(data, "stage3_train")))
    for stage in STREAMS[:2]:
        assert set().union(*map(grams, examples(data, stage))) & set().union(*map(grams, examples(data, "val") + examples(data, "test"))) <= training_text
