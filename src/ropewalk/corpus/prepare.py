"""From documents to token stores in five steps, each of which can be resumed and counts what it leaves out.

All steps but the last work on parts of some MiB (`ropewalk.corpus.parts`):

1. read every shard: parse rows, count damaged ones, bound lengths, hash for finding copies;
2. split by hash of the name, and refuse documents that are too few or too short (`ropewalk.corpus.sufficiency`);
3. compare documents with each other and drop copies (`ropewalk.corpus.duplicates`);
4. tokenise (`ropewalk.corpus.tokenise`);
5. write the stores of the three splits in the order of the corpus, whatever the number of workers.

datatrove 0.10 has the same steps and more filters, and runs on Slurm and Ray. On genuine rows of RedPajama-V1
(`benchmarks/corpus`), its JSON reader alone has half the speed of decompression and orjson, where reading, filtering
and splitting have two thirds here, because it makes a Python object with metadata of every document. It resumes by
whole files, writes token files in the order of tasks, logs rows that it cannot read without keeping them, and
deduplicates in four jobs, after which one document of each cluster is left whatever its split. Therefore it is not used
here. A corpus that needs a cluster can be filtered with it first; ``corpus=jsonl`` reads the JSON lines that it writes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.config import CorpusConfig
from ropewalk.corpus.card import describe, draw_card
from ropewalk.corpus.duplicates import KEPT, REASONS, SAME_ID, find_duplicates
from ropewalk.corpus.joining import TokenSpan, joined, read_joined
from ropewalk.corpus.lengths import LongestDocuments, longest_documents
from ropewalk.corpus.mixture import pool_of, quotas
from ropewalk.corpus.overlap import write_evaluation
from ropewalk.corpus.parts import Part, ReadSettings, ReadTask, whole_parts
from ropewalk.corpus.progress import PrepareProgress
from ropewalk.corpus.rejected import check_rejected, write_rejected
from ropewalk.corpus.shards import Shard
from ropewalk.corpus.split import SPLITS, Shares, Split
from ropewalk.corpus.store import StoreWriter, TokenStore, token_type
from ropewalk.corpus.sufficiency import Need, check_estimate, check_stores, choose_salt
from ropewalk.corpus.tokenise import Encode, TokenTask, encoder, load_tokenizer, stored, tokenise_part
from ropewalk.corpus.worker import cores, work_all
from ropewalk.files import read_json, write_json, writing

_WORTH_A_WORKER = 1 << 25
"""Bytes of a corpus below which starting worker processes takes longer than they save."""


def prepare_shards(
    shards: Sequence[Shard],
    *,
    evaluation: Sequence[Shard] = (),
    config: CorpusConfig,
    tokenizer: Any,
    state: Path,
    folder: Path,
) -> dict[str, Any]:
    """Write a token store for each split to ``folder`` and return the data card; all stores are written or none.

    Args:
        evaluation: files whose text must not be trained on.
        tokenizer: a transformers tokenizer with EOS, which also serves as BOS if it has none.
        state: folder for what was done so far, from which a killed call resumes.

    Raises:
        ValueError: there are no documents or too few long ones, or too large a share of the rows was rejected; and as
            in `ropewalk.corpus.documents.read_rows`.
        FileNotFoundError: a file does not exist.
    """
    preparation = _Preparation(config, tokenizer, state)
    if evaluation and not preparation.evaluation.is_file():
        write_evaluation(evaluation, preparation.evaluation, words=config.evaluation_words)
    size = sum(shard.size for shard in shards)
    tasks = [ReadTask(shard, number, str(state / "parts"), preparation.settings) for number, shard in enumerate(shards)]
    with PrepareProgress(size) as bar:
        # The largest shards come first, so that none of them is left when all other workers are done.
        tasks.sort(key=lambda task: -task.shard.size)
        work_all(tasks, bar.read, workers=preparation.workers if size >= _WORTH_A_WORKER else 1)
        return preparation.finish(whole_parts(state / "parts"), folder, bar)


@dataclass
class _Preparation:
    """The steps for one corpus; a run that resumes must have the same configuration, tokenizer and folder."""

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
    def need(self) -> Need:
        config = self.config
        return Need(config.min_long_documents, config.long_tokens, config.across_documents, config.train_tokens)

    @property
    def shares(self) -> Shares:
        return Shares(self.config.search_share, self.config.test_share)

    @property
    def evaluation(self) -> Path:
        return self.state / "evaluation.npy"

    @property
    def settings(self) -> ReadSettings:
        config = self.config
        return ReadSettings(
            min_tokens=config.min_tokens,
            min_tokens_by_subset=dict(config.min_tokens_by_subset),
            near=config.near_duplicates > 0,
            evaluation=str(self.evaluation) if config.evaluation_sets else None,
            evaluation_words=config.evaluation_words,
            evaluation_overlap=config.evaluation_overlap,
        )

    def finish(self, parts: Sequence[Part], folder: Path, bar: PrepareProgress) -> dict[str, Any]:
        """Do all steps after reading and return the data card."""
        rejected: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        for part in parts:
            rejected.update(part.about["rejected"])
            dropped.update(part.about["dropped"])
        rows = sum(map(len, parts)) + dropped.total() + rejected.total()
        check_rejected(rows, rejected, dropped, config=self.config, parts=self.state / "parts")
        salt_file = self.state / "salt.json"
        documents = None if salt_file.is_file() else self._estimated(parts)
        salt = read_json(salt_file)["salt"] if documents is None else self._salt(documents)
        for part in parts:
            part.keep("splits", self.shares.split(part.groups(), salt))
        verdicts = self._verdicts(parts)
        for code, count in zip(*np.unique(verdicts, return_counts=True), strict=True):
            if code:
                (rejected if code == SAME_ID else dropped)[REASONS[code]] += int(count)
        check_rejected(rows, rejected, dropped, config=self.config, parts=self.state / "parts")
        if documents is not None:
            kept = documents[verdicts[documents.places] == KEPT]
            check_estimate(kept, self.shares, self.need, salt=salt, is_given=self.config.salt is not None)
            # From here on parts lose their texts, of which samples were taken.
            write_json(salt_file, {"salt": salt})
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
            if self.config.salt is None:
                card["salt"] = salt
            if self.config.across_documents:
                card["across_documents"] = True
            write_rejected(parts, verdicts, aside / "rejected.jsonl")
            for split in SPLITS:
                card[split] = self._write_split(split, parts, aside, dropped)
            card["dropped"] = dict(dropped)
            self._check_stores(aside, card)
            write_json(aside / "card.json", card)
            draw_card(card, aside / "card.png")
        return card

    def _estimated(self, parts: Sequence[Part]) -> LongestDocuments:
        """The longest documents with their estimated lengths; none where none are needed."""
        wanted = parts if self.need.documents else ()
        return longest_documents(wanted, self._encoder(), long_tokens=self.need.tokens)

    def _salt(self, documents: LongestDocuments) -> str:
        given = self.config.salt
        return choose_salt(documents, self.shares, self.need) if given is None else given

    def _check_stores(self, folder: Path, card: dict[str, Any]) -> None:
        lengths = [TokenStore(folder / split).lengths for split in SPLITS]
        check_stores(lengths, self.need, documents=sum(card[split]["documents"] for split in SPLITS))

    def _verdicts(self, parts: Sequence[Part]) -> np.ndarray:
        """KEPT or the reason for dropping it, for every document; also written to the parts for tokenising."""
        path = self.state / "verdicts.npy"
        if not path.is_file():
            config = self.config
            duplicates = find_duplicates(
                parts,
                exact=config.exact_duplicates,
                near=config.near_duplicates,
                overlaps=bool(config.evaluation_sets),
            )
            with writing(path) as aside, aside.open("wb") as out:
                np.save(out, duplicates)
        verdicts = np.asarray(np.load(path))
        start = 0
        for part in parts:
            part.keep("verdicts", verdicts[start : start + len(part)])
            start += len(part)
        return verdicts

    def _tokenizer_file(self) -> Path | None:
        """The tokenizer as `tokenizers` saves it; None where it is written in Python."""
        backend, path = getattr(self.tokenizer, "backend_tokenizer", None), self.state / "tokenizer.json"
        if backend is not None and not path.is_file():
            with writing(path) as aside:
                backend.save(str(aside))
        return None if backend is None else path

    def _encoder(self) -> Encode:
        path = self._tokenizer_file()
        if path is None:
            return self._encode
        return encoder(load_tokenizer(path, split_special_tokens=self._split_special_tokens))

    @property
    def _split_special_tokens(self) -> bool:
        return bool(getattr(self.tokenizer, "split_special_tokens", False))

    def _tokenise(self, parts: Sequence[Part], bar: PrepareProgress) -> None:
        config, path = self.config, self._tokenizer_file()
        tasks = [
            TokenTask(
                part=str(part.path),
                folder=str(self.state / "tokens"),
                tokenizer=str(path or ""),
                dtype=token_type(len(self.tokenizer)).name,
                min_tokens=config.min_tokens,
                min_tokens_by_subset=dict(config.min_tokens_by_subset),
                split_special_tokens=self._split_special_tokens,
                dropped=str(part.path / "verdicts.npy"),
            )
            for part in parts
        ]
        bar.begin_tokenising(sum(part.about["text_bytes"] for part in parts))
        if path is None:
            for task in tasks:
                tokenise_part(task, bar.tokenised, self._encode)
        else:
            work_all(tasks, bar.tokenised, workers=self.workers)

    def _encode(self, texts: list[str]) -> list[Any]:
        """Encode with a tokenizer that is written in Python."""
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [np.asarray(ids, np.uint32) for ids in encoded]

    def _write_split(self, split: Split, parts: Sequence[Part], folder: Path, dropped: Counter[str]) -> dict[str, Any]:
        (folder / split).mkdir()
        writer = StoreWriter(folder / split, bos=self.bos, eos=self.eos, vocab_size=len(self.tokenizer))
        between = np.asarray(list(dict.fromkeys([self.eos, self.bos])), writer.dtype).tobytes()
        spans = self._spans(split, parts, dropped, writer.dtype)
        try:
            for group in joined(spans, tokens=self.config.long_tokens if self.config.across_documents else 0):
                name = group[0].name + (f" and {len(group) - 1} more" if len(group) > 1 else "")
                writer.add(name, group[0].subset, read_joined(group, between), joined=len(group) > 1)
            writer.close()
        finally:
            writer.abandon()
        return describe(TokenStore(folder / split), writer, self.config.long_tokens)

    def _spans(
        self, split: Split, parts: Sequence[Part], dropped: Counter[str], dtype: "np.dtype[Any]"
    ) -> Iterator[TokenSpan]:
        """Yield the tokens of a split's documents in order, as many as their shares of a mixture allow."""
        remaining_quotas = self._quotas(parts) if split == "train" and self.config.weights else None
        for part in parts:
            folder, start = self.state / "tokens" / part.path.name, 0
            for name, subset, length in stored(part, folder, split):
                used = length
                if remaining_quotas is not None:
                    pool = pool_of(subset, self.config.weights)
                    used = min(length, remaining_quotas.get(pool, 0)) if pool is not None else 0
                    if pool is not None:
                        remaining_quotas[pool] -= used
                if remaining_quotas is not None and not used:
                    dropped["beyond its share of the mixture"] += 1
                else:
                    yield TokenSpan(name, subset, folder / f"{split}.bin", start, used, dtype.itemsize)
                start += length * dtype.itemsize

    def _quotas(self, parts: Sequence[Part]) -> dict[str, int]:
        available: Counter[str] = Counter()
        for part in parts:
            for _, subset, length in stored(part, self.state / "tokens" / part.path.name, "train"):
                available[subset] += length
        return quotas(available, self.config.weights, tokens=self.config.mixture_tokens)
