"""Every registered head by every check; registering is being tested."""

from __future__ import annotations

import pytest

from tests.support.head_checks import CHECKS, Check
from tests.support.head_samples import NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_head(name: str, check: Check) -> None:
    check(name)
