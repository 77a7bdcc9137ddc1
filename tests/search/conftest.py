"""A trained tiny model, for what random weights cannot show."""

from typing import Any

import pytest

from tiny_runs import trained_llama


@pytest.fixture(scope="session")
def trained() -> Any:
    return trained_llama()
