"""Text is read behind BOS, or behind EOS where a tokenizer has no BOS, as those of chat models do (ChatML)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ropewalk.config import CorpusConfig
from ropewalk.corpus.prepare import prepare_shards
from ropewalk.corpus.segments import Segments
from ropewalk.corpus.sources import find_shards
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.passkey import passkey_prompt
from tiny_models import byte_tokenizer


def qwen_like() -> Any:
    """Special tokens as Qwen2.5-Instruct has them: no BOS; EOS ends a turn, padding ends a document."""
    return byte_tokenizer(bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def smollm_like() -> Any:
    """Special tokens as SmolLM2-Instruct has them: BOS begins a turn."""
    return byte_tokenizer(bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>")


@pytest.mark.parametrize(
    ("make", "first"), [(qwen_like, "<|im_end|>"), (smollm_like, "<|im_start|>"), (byte_tokenizer, "<s>")]
)
def test_the_store_the_rows_and_the_prompts_begin_with_the_same_token(
    tmp_path: Path, make: Callable[[], Any], first: str
) -> None:
    tokenizer = make()
    expected, last = tokenizer.convert_tokens_to_ids(first), tokenizer.eos_token_id
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(f"document {number}: " + "a long line of words and words\n" * 20)
    config = CorpusConfig(name="text", path=str(tmp_path), min_long_documents=0, long_tokens=400)
    prepare_shards(
        find_shards(config, folder=tmp_path, downloads=tmp_path),
        evaluation=[],
        config=config,
        tokenizer=tokenizer,
        state=tmp_path / "state",
        folder=tmp_path / "tokens",
    )
    store = TokenStore(tmp_path / "tokens" / "train")
    rows = store.first_tokens(64, documents=2)
    assert (rows[:, 0] == expected).all()
    text = tokenizer.decode(rows[0, 1:])
    assert text.startswith("document ")
    assert not np.isin(rows[:, 1:], tokenizer.all_special_ids).any()
    row = Segments(store, length=64, batch_size=1, steps=1, seed=0).step(0).ids[0]
    assert (int(row[0]), int(row[-1])) == (expected, last)
    prompt = passkey_prompt(tokenizer, keys=["12345", "54321"], length=400, depth=0.5)
    assert prompt.ids[0] == expected
    assert not set(prompt.ids[1:]) & set(tokenizer.all_special_ids)


def test_a_tokenizer_without_eos_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    config = CorpusConfig(name="text", path=str(tmp_path), min_long_documents=0, long_tokens=400)
    with pytest.raises(ValueError, match="has no EOS token; set one and save it again"):
        prepare_shards(
            find_shards(config, folder=tmp_path, downloads=tmp_path),
            evaluation=[],
            config=config,
            tokenizer=byte_tokenizer(bos_token=None, eos_token=None),
            state=tmp_path / "state",
            folder=tmp_path / "tokens",
        )
