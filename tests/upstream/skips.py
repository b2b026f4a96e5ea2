"""Skipping an upstream test by name, with the reason in the report."""

import unittest
from collections.abc import Callable


def skips(reasons: dict[str, str]) -> Callable[[type], type]:
    """A class decorator that skips tests.

    Args:
        reasons: Beginning of a test's name -> why it does not apply; `test_x` also names what
            `parameterized.expand` makes of it (`test_x_0_…`).

    Raises:
        LookupError: When a name fits no test, so that a skip cannot outlive the test that it is about.
    """

    def decorate(case: type) -> type:
        tests = unittest.defaultTestLoader.getTestCaseNames(case)
        for name, reason in reasons.items():
            named = [test for test in tests if test == name or test.startswith(f"{name}_")]
            if not named:
                raise LookupError(f"`{case.__name__}` has no test `{name}`: upstream renamed it, or the skip is stale")
            for test in named:
                setattr(case, test, unittest.skip(reason)(getattr(case, test)))
        return case

    return decorate
