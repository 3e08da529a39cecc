"""Shared by all tests: which recorded field case a test stands for."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Write the ids of `@pytest.mark.field(...)` into the JUnit report, where `tests.conformance` reads them."""
    for item in items:
        for marker in item.iter_markers("field"):
            item.user_properties.extend(("field", case_id) for case_id in marker.args)
