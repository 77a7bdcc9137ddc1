"""From documents to token stores: read, compare, tokenise, write, each step resumable and counted.

The steps, all but the last in parts of some MiB (`ropewalk.corpus.parts`):

1. read every shard: parse, count what is damaged, bound the length, split by hash of the name, hash for copies;
2. compare documents with each other and drop copies (`ropewalk.corpus.duplicates`);
3. tokenise (`ropewalk.corpus.tokenise`);
4. write the stores of the three splits in the order of the corpus, whatever the number of workers.

datatrove 0.10 has the same steps, more filters, and goes on to Slurm and Ray. Measured on genuine rows of RedPajama-V1
(`benchmarks/corpus`): its JSON reader alone has half the speed of decompression and orjson, where reading, filtering
and splitting here have two thirds; a document is a Python object with metadata from its reader to its writer. Its unit
of resuming is a task's whole file, its token files lie in the order of tasks, rows that it cannot read are logged and
not kept, and deduplication is four jobs with a folder each, after which one document of a cluster is left whatever its
split. So it is not used here. A corpus that needs a cluster can be filtered by it first; its JSON lines are read with
``corpus=jsonl``.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ropewalk.config import CorpusConfig
from ropewalk.corpus.card import describe, draw_card
from ropewalk.corpus.documents import Document
from ropewalk.corpus.duplicates import REASONS, SAME_ID, find_duplicates
from ropewalk.corpus.mixture import pool_of, quotas
from ropewalk.corpus.overlap import write_evaluation
from ropewalk.corpus.parts import Part, Reading, ReadTask, whole_parts, write_parts
from ropewalk.corpus.progress import PrepareProgress
from ropewalk.corpus.rejected import check_rejected, write_rejected
from ropewalk.corpus.shards import Shard
from ropewalk.corpus.split import SPLITS, Split, split_of
from ropewalk.corpus.store import StoreWriter, TokenStore, token_type
from ropewalk.corpus.tokenise import TokenTask, stored, tokenise_part
from ropewalk.corpus.worker import cores, work_all
from ropewalk.files import read_json, write_json, writing

_COPY_BYTES = 1 << 24
_WORTH_A_WORKER = 1 << 25
"""Bytes of a corpus below which starting processes takes longer than doing without."""


def split_of_document(document: Document, config: CorpusConfig) -> Split:
    return split_of(document.group, search_share=config.search_share, test_share=config.test_share, salt=config.salt)


def prepare_stores(
    documents: Iterable[Document], *, config: CorpusConfig, tokenizer: Any, rejected: Counter[str], folder: Path
) -> dict[str, Any]:
    """Write a token store per split to ``folder`` and return the data card; all stores or none.

    Args:
        tokenizer: a transformers tokenizer with BOS and EOS (EOS also serves as BOS where there is none).
        rejected: filled by the reader while ``documents`` is consumed.

    Raises:
        ValueError: no documents, too large a share of rows rejected, or too few long documents.
    """
    state = folder.with_name(f".{folder.name}.parts")
    shutil.rmtree(state, ignore_errors=True)
    try:
        made = _Preparation(config, tokenizer, state)
        with PrepareProgress(0) as bar:
            write_parts(documents, state / "parts", made.reading, bar.read)
            return made.finish(whole_parts(state / "parts"), folder, bar, rejected=rejected)
    finally:
        shutil.rmtree(state, ignore_errors=True)


def prepare_shards(
    shards: Sequence[Shard],
    *,
    evaluation: Sequence[Shard] = (),
    config: CorpusConfig,
    tokenizer: Any,
    state: Path,
    folder: Path,
) -> dict[str, Any]:
    """As `prepare_stores` from files, on all cores; a killed call goes on from what it left in ``state``.

    Raises also what `ropewalk.corpus.documents.read_rows` does.
    """
    made = _Preparation(config, tokenizer, state)
    if evaluation and not made.evaluation.is_file():
        write_evaluation(evaluation, made.evaluation, words=config.evaluation_words)
    size = sum(shard.size for shard in shards)
    tasks = [ReadTask(shard, number, str(state / "parts"), made.reading) for number, shard in enumerate(shards)]
    with PrepareProgress(size) as bar:
        # The largest first, so that none is left over when the others are done.
        tasks.sort(key=lambda task: -task.shard.size)
        work_all(tasks, bar.read, workers=made.workers if size >= _WORTH_A_WORKER else 1)
        return made.finish(whole_parts(state / "parts"), folder, bar, rejected=Counter())


@dataclass
class _Preparation:
    """One corpus on its way, with what must not change between a run and the one that goes on from it."""

    config: CorpusConfig
    tokenizer: Any
    state: Path
    bos: int = field(init=False)
    eos: int = field(init=False)

    def __post_init__(self) -> None:
        eos, bos = self.tokenizer.eos_token_id, self.tokenizer.bos_token_id
        if eos is None:
            raise ValueError(
                f"the tokenizer of {self.tokenizer.name_or_path} has no EOS token; set one and save it again"
            )
        self.bos, self.eos = eos if bos is None else bos, eos

    @property
    def workers(self) -> int:
        return self.config.workers or cores()

    @property
    def evaluation(self) -> Path:
        return self.state / "evaluation.npy"

    @property
    def reading(self) -> Reading:
        config = self.config
        return Reading(
            search_share=config.search_share,
            test_share=config.test_share,
            salt=config.salt,
            least_tokens=config.least_tokens,
            least_tokens_by_subset=dict(config.least_tokens_by_subset),
            near=config.near_duplicates > 0,
            evaluation=str(self.evaluation) if config.evaluation_sets else None,
            evaluation_words=config.evaluation_words,
            evaluation_overlap=config.evaluation_overlap,
        )

    def finish(
        self, parts: Sequence[Part], folder: Path, bar: PrepareProgress, *, rejected: Counter[str]
    ) -> dict[str, Any]:
        """All steps after reading."""
        dropped: Counter[str] = Counter()
        for part in parts:
            rejected.update(part.about["rejected"])
            dropped.update(part.about["dropped"])
        rows = sum(map(len, parts)) + dropped.total() + rejected.total()
        check_rejected(rows, rejected, dropped, config=self.config, parts=self.state / "parts")
        verdicts = self._verdicts(parts)
        for code, count in zip(*np.unique(verdicts, return_counts=True), strict=True):
            if code:
                (rejected if code == SAME_ID else dropped)[REASONS[code]] += int(count)
        check_rejected(rows, rejected, dropped, config=self.config, parts=self.state / "parts")
        self._tokenise(parts, bar)
        tokenised = [read_json(self.state / "tokens" / part.path.name / "part.json") for part in parts]
        if short := sum(about["too short"] for about in tokenised):
            dropped["too short"] += short
        with writing(folder) as aside:
            aside.mkdir()
            card: dict[str, Any] = {
                "corpus": self.config.name,
                "fingerprint": self.config.fingerprint,
                "rows": rows,
                "rejected": dict(rejected),
                "dropped": {},
            }
            write_rejected(parts, verdicts, aside / "rejected.jsonl")
            for split in SPLITS:
                card[split] = self._write_split(split, parts, aside, dropped)
            card["dropped"] = dict(dropped)
            self._check_long(card)
            write_json(aside / "card.json", card)
            draw_card(card, aside / "card.png")
        return card

    def _check_long(self, card: dict[str, Any]) -> None:
        config = self.config
        for split in ("search", "test"):
            found = card[split]["long_documents"]
            if found < config.least_long_documents:
                raise ValueError(
                    f"the {split} split holds {found} documents of at least {config.long_tokens} tokens "
                    f"(the longest has {card[split]['longest']}), {config.least_long_documents} are needed; "
                    "add longer documents, or lower corpus.long_tokens or corpus.least_long_documents"
                )

    def _verdicts(self, parts: Sequence[Part]) -> np.ndarray:
        """KEPT or why not, for every document; kept as a file, whose parts the tokenising tasks read."""
        path = self.state / "verdicts.npy"
        if not path.is_file():
            config = self.config
            found = find_duplicates(parts, exact=config.exact_duplicates, near=config.near_duplicates)
            with writing(path) as aside, aside.open("wb") as out:
                np.save(out, found)
        verdicts = np.asarray(np.load(path))
        start = 0
        for part in parts:
            own = part.path / "verdicts.npy"
            if not own.is_file():
                with writing(own) as aside, aside.open("wb") as out:
                    np.save(out, verdicts[start : start + len(part)])
            start += len(part)
        return verdicts

    def _tokenise(self, parts: Sequence[Part], bar: PrepareProgress) -> None:
        config, tokenizer = self.config, self.tokenizer
        backend, path = getattr(tokenizer, "backend_tokenizer", None), self.state / "tokenizer.json"
        if backend is not None and not path.is_file():
            with writing(path) as aside:
                backend.save(str(aside))
        tasks = [
            TokenTask(
                part=str(part.path),
                folder=str(self.state / "tokens"),
                tokenizer=str(path),
                dtype=token_type(len(tokenizer)).name,
                least_tokens=config.least_tokens,
                least_tokens_by_subset=dict(config.least_tokens_by_subset),
                split_special_tokens=bool(getattr(tokenizer, "split_special_tokens", False)),
                dropped=str(part.path / "verdicts.npy"),
            )
            for part in parts
        ]
        bar.begin_tokenising(sum(part.about["text_bytes"] for part in parts))
        if backend is None:
            for task in tasks:
                tokenise_part(task, bar.tokenised, self._encode)
        else:
            work_all(tasks, bar.tokenised, workers=self.workers)

    def _encode(self, texts: list[str]) -> list[Any]:
        """For tokenizers in Python alone."""
        found = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [np.asarray(ids, np.uint32) for ids in found]

    def _write_split(self, split: Split, parts: Sequence[Part], folder: Path, dropped: Counter[str]) -> dict[str, Any]:
        (folder / split).mkdir()
        writer = StoreWriter(folder / split, bos=self.bos, eos=self.eos, vocab_size=len(self.tokenizer))
        left = self._quotas(parts) if split == "train" and self.config.weights else None
        try:
            for part in parts:
                tokens = self.state / "tokens" / part.path.name
                with (tokens / f"{split}.bin").open("rb") as source:
                    for name, subset, length in stored(part, tokens, split):
                        size = length * writer.dtype.itemsize
                        used = length
                        if left is not None:
                            pool = pool_of(subset, self.config.weights)
                            used = min(length, left.get(pool, 0)) if pool is not None else 0
                            if pool is not None:
                                left[pool] -= used
                            if not used:
                                dropped["beyond its share of the mixture"] += 1
                                source.seek(size, 1)
                                continue
                        own = used * writer.dtype.itemsize
                        writer.add(name, subset, _pieces(source, own))
                        source.seek(size - own, 1)
            writer.close()
        finally:
            writer.abandon()
        return describe(TokenStore(folder / split), writer, self.config.long_tokens)

    def _quotas(self, parts: Sequence[Part]) -> dict[str, int]:
        available: Counter[str] = Counter()
        for part in parts:
            for _, subset, length in stored(part, self.state / "tokens" / part.path.name, "train"):
                available[subset] += length
        return quotas(available, self.config.weights, tokens=self.config.mixture_tokens)


def _pieces(source: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        piece = source.read(min(size, _COPY_BYTES))
        size -= len(piece)
        yield piece
