"""Too few or too short documents are told before they are tokenised, and a salt is found for few of them."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from ropewalk.config import CorpusConfig
from ropewalk.corpus import parts as parts_module
from ropewalk.corpus import prepare as prepare_module
from ropewalk.corpus.lengths import LongestDocuments
from ropewalk.corpus.prepare import prepare_shards
from ropewalk.corpus.sources import find_shards
from ropewalk.corpus.split import SPLITS, Shares, split_of
from ropewalk.corpus.store import TokenStore
from ropewalk.corpus.sufficiency import Need, check_estimate, check_stores, choose_salt
from workspace import ROOT

SHARES = Shares(0.15, 0.15)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ROOT / "models" / "walker")


def documents(lengths: list[int], *, margin: float = 0.0, copies: int = 1, subset: str = "text") -> LongestDocuments:
    """Documents of about these lengths, each ``copies`` times."""
    exact = np.repeat(np.asarray(lengths, np.int64), copies)
    return LongestDocuments(
        places=np.arange(len(exact)),
        subsets=np.full(len(exact), subset),
        groups=np.asarray([f"{number}.txt" for number in range(len(exact))], object),
        texts=np.arange(len(exact)) // copies,
        low=(exact * (1 - margin)).astype(np.int64),
        high=(exact * (1 + margin)).astype(np.int64),
        total=len(exact),
    )


def held(lengths: list[int], salt: str, *, tokens: int) -> list[int]:
    """Numbers of long documents in the search and test splits."""
    splits = [
        split_of(f"{number}.txt", search_share=0.15, test_share=0.15, salt=salt) for number in range(len(lengths))
    ]
    return [
        sum(part == split and length >= tokens for part, length in zip(splits, lengths, strict=True))
        for split in ("search", "test")
    ]


def test_a_salt_is_found_for_few_documents() -> None:
    lengths = [500, *range(1000, 2900, 100)]
    need = Need(4, 1000, across=False)
    salt = choose_salt(documents(lengths), SHARES, need)
    assert salt != ""
    assert min(held(lengths, "", tokens=1000)) < 4 <= min(held(lengths, salt, tokens=1000))
    splits = SHARES.split([f"{number}.txt" for number in range(20)], salt)
    assert np.asarray(lengths)[splits == SPLITS.index("train")].sum() >= sum(lengths) / 2
    # It is the first one.
    earlier = ["", *map(str, range(1, int(salt)))]
    enough = [other for other in earlier if min(held(lengths, other, tokens=1000)) >= 4]
    for other in enough:
        splits = SHARES.split([f"{number}.txt" for number in range(20)], other)
        assert np.asarray(lengths)[splits == SPLITS.index("train")].sum() < sum(lengths) / 2


def test_the_first_salt_is_kept_where_it_will_do() -> None:
    assert choose_salt(documents([2000] * 500), SHARES, Need(8, 1000, across=False)) == ""
    assert choose_salt(documents([]), SHARES, Need(0, 1000, across=False)) == ""


def test_a_salt_under_which_documents_surely_suffice_comes_before_one_under_which_they_may() -> None:
    lengths = [1000] * 30 + [1050] * 30
    need = Need(4, 1000, across=False)
    near = documents(lengths, margin=0.04)
    salt = choose_salt(near, SHARES, need)
    assert min(need.held(near, SHARES, salt, surely=True)) >= 4


def test_copies_count_once_in_the_split_where_one_is_kept() -> None:
    twice = documents([2000] * 40, copies=2)
    search, test = Need(1, 1000, across=False).held(twice, SHARES, "", surely=True)
    splits = [split_of(f"{number}.txt", search_share=0.15, test_share=0.15, salt="") for number in range(80)]
    pairs = list(zip(splits[::2], splits[1::2], strict=True))
    assert test == sum("test" in pair for pair in pairs)
    assert search == sum("search" in pair and "test" not in pair for pair in pairs)


@pytest.mark.parametrize("across", [False, True])
def test_what_passes_is_never_refused(across: bool) -> None:
    """Lengths are as far off as the estimate allows."""
    rng = np.random.default_rng(3)
    need = Need(3, 1000, across=across)
    passed = refused = 0
    for _ in range(150):
        lengths = rng.integers(800, 1200, 24)
        off = documents(lengths.tolist(), margin=0.05)
        exact = documents(lengths.tolist())
        is_enough = need.is_met(exact, SHARES, "", surely=True)
        try:
            check_estimate(off, SHARES, need, salt="", is_given=True)
        except ValueError:
            assert not is_enough
            refused += 1
        passed += is_enough
    assert passed > 5
    assert refused > 5


def message(lengths: list[int], need: Need, *, salt: str | None = None) -> str:
    corpus = documents(lengths)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        check_estimate(
            corpus,
            SHARES,
            need,
            salt=choose_salt(corpus, SHARES, need) if salt is None else salt,
            is_given=salt is not None,
        )
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def test_the_longest_length_that_documents_allow_will_do() -> None:
    lengths = [3000] * 40 + [300] * 200
    text = message(lengths, Need(4, 8192, across=False))
    assert "each need 4 of at least 8192 tokens (corpus.min_long_documents, corpus.long_tokens)" in text
    assert "the corpus has 240, the longest of about 3000 tokens" in text
    assert "they allow 2048 tokens: lower extension.target until corpus.long_tokens" in text
    assert text.endswith("or join short documents with corpus.across_documents=true")
    need = Need(4, 2048, across=False)
    check_estimate(documents(lengths), SHARES, need, salt=choose_salt(documents(lengths), SHARES, need), is_given=False)


def test_advice_is_given_only_where_it_helps() -> None:
    need = Need(4, 1000, across=False)
    lengths = [2000] * 24
    bad = next(str(number) for number in range(99) if min(held(lengths, str(number), tokens=1000)) < 4)
    assert "leave out corpus.salt, and one is chosen under which they suffice" in message(lengths, need, salt=bad)
    assert "raise corpus.search_share and corpus.test_share" in message([2000] * 9, need)
    single = message([99_999], need)
    assert "the corpus has 1, the longest of about 99999 tokens; all splits together need 8 documents" in single
    tiny = message([50] * 30, need)
    assert tiny.endswith("they suffice for no length from 256 tokens on: add longer documents")
    assert "corpus.across_documents=true" in message([50] * 3000, need)
    assert "corpus.across_documents=true" not in message([50] * 3000, Need(4, 99_000, across=True))


def test_stores_are_counted_exactly() -> None:
    need = Need(2, 1000, across=False)
    enough, few = np.asarray([5, 1000, 1001]), np.asarray([999, 1000, 600])
    check_stores([few, enough, enough], need, documents=9)
    with pytest.raises(
        ValueError, match=r"hold 2 and 1; the corpus has 9, the longest of 1001 tokens; they allow 512 "
    ):
        check_stores([few, enough, few], need, documents=9)
    nothing = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match=r"hold 0 and 2; .*all splits together need 4 documents at least"):
        check_stores([enough, nothing, enough], need, documents=3)
    trained = replace(need, train_tokens=500)
    check_stores([few, enough, enough], trained, documents=9)
    for train in (nothing, np.asarray([499])):
        with pytest.raises(ValueError, match=r"no document of at least 500 tokens \(corpus.train_tokens\) is left to "):
            check_stores([train, enough, enough], trained, documents=9)


def test_a_salt_leaves_a_document_to_train_on() -> None:
    lengths = [2000] * 6
    shares, need = Shares(0.45, 0.45), Need(2, 1000, across=False)
    corpus = documents(lengths)
    left = {salt: sum(split == "train" for split in shares.split(corpus.groups, salt)) for salt in map(str, range(99))}
    bad = next(
        salt for salt, train in left.items() if not train and min(need.held(corpus, shares, salt, surely=True)) >= 2
    )
    check_estimate(corpus, shares, need, salt=bad, is_given=True)
    trained = replace(need, train_tokens=1500)
    with pytest.raises(ValueError, match=r"left to the training split; the corpus has 6; .*extension=untrained$"):
        check_estimate(corpus, shares, trained, salt=bad, is_given=True)
    salt = choose_salt(corpus, shares, trained)
    assert (shares.split(corpus.groups, salt) == SPLITS.index("train")).any()
    check_estimate(corpus, shares, trained, salt=salt, is_given=False)
    with pytest.raises(ValueError, match="all splits together need 5 documents at least"):
        check_estimate(documents([2000] * 4), shares, trained, salt="", is_given=False)


def words(seed: int, count: int) -> str:
    return " ".join(map(str, np.random.default_rng(seed).integers(10, 99, count)))


def prepare(folder: Path, sizes: list[int], tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """Prepare a folder of texts with these numbers of words."""
    texts = folder.parent / "texts"
    texts.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        (texts / f"{number:03}.txt").write_text(words(number, size))
    values = {"name": "text", "path": str(texts), "salt": None, "min_long_documents": 3, "long_tokens": 1000}
    corpus = CorpusConfig(**{**values, **changes})
    folder.mkdir()
    return prepare_shards(
        find_shards(corpus, folder=folder, downloads=folder),
        config=corpus,
        tokenizer=tokenizer,
        state=folder / "state",
        folder=folder / "tokens",
    )


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "tokens").rglob("*")) if path.is_file()}


def test_the_data_card_names_the_salt_and_workers_change_nothing(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [100 * number for number in range(1, 21)]
    card = prepare(tmp_path / "one", sizes, tokenizer, workers=1)
    assert min(card[split]["long_documents"] for split in ("search", "test")) >= 3
    names = {split: TokenStore(tmp_path / "one" / "tokens" / split).names for split in SPLITS}
    for split in SPLITS:
        for name in names[split]:
            assert split_of(name, search_share=0.15, test_share=0.15, salt=card["salt"]) == split
    monkeypatch.setattr(prepare_module, "_WORTH_A_WORKER", 0)
    prepare(tmp_path / "many", sizes, tokenizer, workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "many")
    given = prepare(tmp_path / "given", sizes, tokenizer, salt=card["salt"])
    assert "salt" not in given
    assert given["train"]["hash"] == card["train"]["hash"]


def test_nothing_is_tokenised_of_documents_that_are_too_few(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"the longest of about \d+ tokens; they allow 512 tokens") as raised:
        prepare(tmp_path / "run", [400] * 30, tokenizer)
    assert not (tmp_path / "run" / "state" / "tokens").exists()
    assert not (tmp_path / "run" / "tokens").exists()
    [allowed] = re.findall(r"they allow (\d+) tokens", str(raised.value))
    card = prepare(tmp_path / "less", [400] * 30, tokenizer, long_tokens=int(allowed))
    assert card["search"]["long_documents"] >= 3


def test_a_run_that_ended_while_it_tokenised_resumes_without_the_texts(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [100 * number for number in range(1, 21)]
    prepare(tmp_path / "whole", sizes, tokenizer)
    corpus = CorpusConfig(
        name="text", path=str(tmp_path / "texts"), salt=None, min_long_documents=3, long_tokens=1000, workers=1
    )
    folder = tmp_path / "broken"
    folder.mkdir()

    def go() -> None:
        shards = find_shards(corpus, folder=folder, downloads=folder)
        prepare_shards(shards, config=corpus, tokenizer=tokenizer, state=folder / "state", folder=folder / "tokens")

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "StoreWriter", _breaks)
        with pytest.raises(KeyboardInterrupt):
            go()
    assert not list(folder.rglob("text.bin"))
    go()
    assert content(folder) == content(tmp_path / "whole")


def _breaks(*_: Any, **__: Any) -> Callable[[], None]:
    raise KeyboardInterrupt


def test_an_estimate_passes_what_the_stores_then_refuse(tmp_path: Path, tokenizer: Any) -> None:
    """Documents that may be long enough are tokenised, and counted again."""
    long = [30_000] * 30
    exact = len(tokenizer(words(0, 30_000), add_special_tokens=False)["input_ids"])
    with pytest.raises(
        ValueError, match=rf"each need 3 of at least {exact + 900} tokens .* hold 0 and 0; the corpus has"
    ):
        prepare(tmp_path / "run", long, tokenizer, long_tokens=exact + 900)
    assert (tmp_path / "run" / "state" / "tokens").exists()


def test_short_documents_are_joined_with_eos_and_bos_between_them(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [60 + 5 * number for number in range(120)] + [1200]
    card = prepare(tmp_path / "joined", sizes, tokenizer, across_documents=True)
    plain = prepare(tmp_path / "plain", sizes, tokenizer, salt=card["salt"], min_long_documents=0)
    assert card["across_documents"] is True
    assert "across_documents" not in plain
    between = [tokenizer.eos_token_id, tokenizer.bos_token_id]
    for split in SPLITS:
        single, joined = (TokenStore(tmp_path / run / "tokens" / split) for run in ("plain", "joined"))
        assert card[split]["joined_documents"] == joined.joined.sum()
        assert card[split]["long_documents"] >= len(joined) - 1
        expected, waiting = [], []
        for number in range(len(single)):
            tokens = single.document(number).tolist()
            if len(tokens) >= 1000:
                expected.append(tokens)
                continue
            waiting.append(tokens)
            if sum(map(len, waiting)) >= 1000:
                expected.append(sum(([*between, *more] for more in waiting[1:]), waiting[0]))
                waiting = []
        if waiting:
            expected.append(sum(([*between, *more] for more in waiting[1:]), waiting[0]))
        assert [joined.document(number).tolist() for number in range(len(joined))] == expected
    assert not TokenStore(tmp_path / "plain" / "tokens" / "train").joined.any()
    assert joined.names[0].endswith("more")
    monkeypatch.setattr(parts_module, "PART_BYTES", 1)
    prepare(tmp_path / "parts", sizes, tokenizer, across_documents=True)
    assert content(tmp_path / "joined") == content(tmp_path / "parts")


def test_subsets_are_joined_apart() -> None:
    need = Need(1, 100, across=True)
    lengths = np.asarray([60, 60, 60, 60])
    assert need.count(lengths, np.asarray(["a", "b", "a", "b"])) == 2
    assert need.count(lengths, np.asarray(["a", "b", "c", "b"])) == 1
