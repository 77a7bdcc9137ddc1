"""What tests of the corpus share: a server that publishes genuine rows in RedPajama's layouts."""

from collections.abc import Iterator

import pytest

from published import Published, publishing


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with publishing() as server:
        yield server
