import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("PYTHONPATH", str(ROOT))
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The fast tests first: a mistake shows in seconds. Then the longest file, so that both cores end together."""
    order = ["test_house", "test_docs", "test_configurator", "test_model", "test_train", "test_compare", "test_evaluate", "test_prepare", "test_sample", "test_serve", "test_browser", "test_reading", "test_faults"]
    items.sort(key=lambda item: order.index(item.path.stem) if item.path.stem in order else len(order))
