"""A trained tiny model, for what random weights cannot show, and a database that machines share."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

import postgresql
from tiny_runs import trained_llama


@pytest.fixture(scope="session")
def trained() -> Any:
    return trained_llama()


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgresql.Cluster]:
    programs = postgresql.programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (`apt-get install postgresql`)")
    made = postgresql.Cluster(programs)
    yield made
    made.remove()


@pytest.fixture
def address(cluster: postgresql.Cluster, request: pytest.FixtureRequest) -> str:
    """A database of the test's own."""
    return cluster.create(re.sub(r"\W+", "_", request.node.name)[:60])
