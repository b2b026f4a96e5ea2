"""Make the upstream tests importable as `upstream_tests`, or end the run with a sentence: nothing is skipped."""

import importlib.util
import sys

import pytest

from .fetch import fetch
from .stand_ins import install

# Markers of the upstream tests; ours are strict.
MARKERS = (
    "accelerate_tests",
    "all_flash_attn_test",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
    "order",
)


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: set by upstream")
    if importlib.util.find_spec("parameterized") is None:
        raise pytest.UsageError("`parameterized` is not installed: pip install -r requirements-upstream.txt")
    try:
        sys.path.insert(0, str(fetch()))
    except RuntimeError as error:
        raise pytest.UsageError(str(error)) from None
    install()
