"""transformers' own common tests, run against our classes: `make test-upstream`.

A package, so that its `conftest.py` does not stand in the way of `tests/conftest.py`.
"""
