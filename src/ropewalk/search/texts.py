"""A search with a model and a list of documents, without the pipeline."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ropewalk.config import SearchConfig, SearchTargetConfig
from ropewalk.corpus.documents import Document
from ropewalk.corpus.store import TokenStore, write_store
from ropewalk.rope import RopeScaling, rotary_shape
from ropewalk.search.targets import TargetSearch


def search_factors(
    model: Any,
    tokenizer: Any,
    documents: Sequence[str],
    *,
    target_length: int,
    first: RopeScaling | None = None,
    config: SearchConfig | None = None,
    seed: int = 0,
) -> RopeScaling:
    """The scaling under which ``model`` reads the documents best, for inputs of up to ``target_length`` tokens.

    Args:
        documents: texts; those of fewer than ``target_length`` tokens are left out, and as many are read as
            ``config.documents`` says.
        first: scaling that the model was trained under, such as that of a published checkpoint; the search starts from
            its window, and the result is composed with it. None for plain RoPE.
        config: the search; by default 24 gradient steps without evolution.

    Raises:
        ValueError: no document is long enough, the target is not above the model's window, or the model has no
            rotary table that can be extended.
    """
    config = config or SearchConfig(name="gradient", gradient_steps=24, trials=0)
    original_length = rotary_shape(model).original_length
    window = first.target_length if first else original_length
    if target_length <= window:
        raise ValueError(f"target_length must be above the model's window of {window} tokens, found {target_length}")
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in documents]
    longest = max(map(len, tokens), default=0) + 1
    if longest < target_length:
        raise ValueError(f"no document has {target_length} tokens; the longest has {longest}")
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    tokenized = [(Document(str(number), "texts", "", str(number)), ids) for number, ids in enumerate(tokens)]
    with TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        write_store(store, tokenized, bos=eos if bos is None else bos, eos=eos, vocab_size=len(tokenizer))
        search = TargetSearch(
            partial(_identity, model),
            TokenStore(store),
            config=config,
            target=SearchTargetConfig(lengths=[target_length]),
            original_length=original_length,
            seed=seed,
            state_folder=Path(folder) / "state",
            load_tokenizer=partial(_identity, tokenizer),
            label="search",
        )
        return search.first(first)[target_length].best


def _identity(loaded: Any) -> Any:
    return loaded
