"""A saved folder means the same in every version of the range (`make test-versions`; not in the default run)."""

import os

import pytest
from matrix import BELOW, STEPS, TESTED, attempt, refusals, write_reference

CHOSEN = os.environ.get("VERSIONS", "").split() or TESTED


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return write_reference(tmp_path_factory.mktemp("reference"))


@pytest.mark.skipif(BELOW not in CHOSEN, reason=f"{BELOW} is not among the chosen versions")
def test_every_way_of_loading_names_the_range_below_it(reference):
    said = refusals(reference)
    assert len(said) == 5
    assert all("transformers>=4.57" in one and BELOW in one and "pip install" in one for one in said), said


@pytest.mark.parametrize("version", [name for name in CHOSEN if name != BELOW])
def test_a_folder_loads_answers_explains_is_saved_and_trained(version, reference):
    results = attempt(version, reference)
    assert {step: results.get(step) for step in STEPS} == dict.fromkeys(STEPS, "yes"), results
