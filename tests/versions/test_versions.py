"""A saved folder means the same in every version of the range (`make test-versions`; not in the default run)."""

import os

import pytest
from matrix import STEPS, TESTED, attempt, write_reference

CHOSEN = os.environ.get("VERSIONS", "").split() or TESTED


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return write_reference(tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("version", CHOSEN)
def test_a_folder_loads_answers_explains_is_saved_and_trained(version, reference):
    results = attempt(version, reference)
    assert {step: results.get(step) for step in STEPS} == dict.fromkeys(STEPS, "yes"), results
