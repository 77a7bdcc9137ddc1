"""A trained tiny model and documents that it can read."""

from typing import Any

import pytest

from ropewalk.corpus.documents import Document
from ropewalk.corpus.store import TokenStore, write_store
from tiny_models import VOCABULARY
from tiny_runs import BOS, EOS, trained_llama, tunes


@pytest.fixture(scope="session")
def trained() -> Any:
    return trained_llama()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Six documents of 300 tokens and two of 700."""
    folder = tmp_path_factory.mktemp("store") / "store"
    documents = [
        (Document(str(number), "c4", "", str(number)), tunes(1, length, seed=number)[0, 1:].tolist())
        for number, length in enumerate([301, 301, 701, 301, 301, 701, 301, 301])
    ]
    write_store(folder, documents, bos=BOS, eos=EOS, vocab_size=VOCABULARY)
    return TokenStore(folder)
