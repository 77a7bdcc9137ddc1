"""Which recall prompts an evaluation asks: each set is drawn once for a tokenizer, and is the same for every method.

The stage prompts writes the sets to a folder; an evaluation draws missing sets with the same function.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ropewalk.config import EvaluateConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.cache import tokenizer_hash
from ropewalk.evaluate.needle_families import in_texts
from ropewalk.evaluate.needles import needle_prompts
from ropewalk.evaluate.passkey import fillers, passkey_prompts
from ropewalk.evaluate.prompts import PASSKEY_FORMS, Prompts
from ropewalk.files import read_json, writing

INDEX = "prompts.json"
REVISION = 2
"""Revision of the draws, raised when a draw gives other prompts than before."""


@dataclass(frozen=True)
class Draw:
    """Everything that the prompts of one family at one length depend on, beside the tokenizer and the documents."""

    family: str
    """One of `ropewalk.evaluate.prompts.PASSKEY_FORMS` or of `ropewalk.evaluate.needle_families.FAMILIES`."""
    length: int
    """Tokens of a prompt and its answer."""
    trials: int
    depths: int
    seed: int

    @property
    def file(self) -> str:
        return f"{self.family}-{self.length}-{self.trials}-{self.depths}.safetensors"

    def prompts(self, tokenizer: Any, documents: TokenStore) -> Prompts:
        """Draw the prompts, the same for the same values; raises ValueError where length or documents are too small."""
        sizes: dict[str, Any] = {name: getattr(self, name) for name in ("length", "trials", "depths", "seed")}
        if self.family in PASSKEY_FORMS:
            varied = PASSKEY_FORMS[self.family] == "varied"
            pieces = fillers(documents, tokens=self.length, count=self.trials, seed=self.seed) if varied else ()
            return passkey_prompts(tokenizer, **sizes, texts=pieces)
        texts: list[list[int]] = []
        if in_texts([self.family]):
            enough = len(documents.long_documents(self.length - 1))
            texts = documents.first_tokens(self.length, documents=min(max(enough, 1), self.trials))[:, 1:].tolist()
        return needle_prompts(tokenizer, self.family, **sizes, texts=texts)


def passkey_draws(config: EvaluateConfig, *, target: int, seed: int) -> Iterator[Draw]:
    """Draws of the passkey task in order of the lengths, half of the trials in each form; fewer beyond ``target``."""
    for length in config.passkey_lengths:
        trials = config.passkey_trials if length <= target else config.passkey_long_trials
        for family, count in zip(PASSKEY_FORMS, (trials - trials // 2, trials // 2), strict=True):
            if count:
                yield Draw(family, length, count, config.passkey_depths, seed)


def needle_draws(config: EvaluateConfig, *, seed: int) -> Iterator[Draw]:
    """Draws of every needle family at every needle length."""
    lengths = config.passkey_lengths if config.needle_lengths is None else config.needle_lengths
    for length in lengths:
        for family in config.needles:
            yield Draw(family, length, config.needle_trials, config.needle_depths, seed)


def retrieval_draws(config: EvaluateConfig, *, seed: int) -> Iterator[Draw]:
    """Draws of what is asked about whole documents and retrieved chunks: the same families, fewer trials."""
    retrieval = config.retrieval
    for length in retrieval.lengths:
        for family in retrieval.tasks:
            depths = config.passkey_depths if family == "passkey" else config.needle_depths
            yield Draw(family, length, retrieval.trials, min(depths, retrieval.trials), seed)


def all_draws(config: EvaluateConfig, *, target: int, seed: int) -> list[Draw]:
    """Everything that the configuration asks for, each once."""
    draws = [
        *passkey_draws(config, target=target, seed=seed),
        *needle_draws(config, seed=seed),
        *retrieval_draws(config, seed=seed),
    ]
    return list(dict.fromkeys(draws))


def _basis(tokenizer: Any, documents: TokenStore) -> dict[str, Any]:
    """What all sets depend on beside their draws."""
    return {"revision": REVISION, "tokenizer": tokenizer_hash(tokenizer), "documents": documents.hash}


def write_prompts(folder: Path, draws: Iterable[Draw], tokenizer: Any, documents: TokenStore) -> list[dict[str, Any]]:
    """Draw the sets into ``folder``, which is replaced: a safetensors file for each set, and their index in `INDEX`.

    Returns a row per set: its draw, how many prompts and tokens it has, and the hash of its content.
    """
    rows = []
    with writing(folder) as aside:
        aside.mkdir()
        for draw in draws:
            drawn = draw.prompts(tokenizer, documents)
            drawn.save(aside / draw.file)
            tokens = sum(len(prompt.ids) for prompt in drawn.prompts)
            rows.append({**asdict(draw), "prompts": len(drawn.prompts), "tokens": tokens, "hash": drawn.hash})
        about = {**_basis(tokenizer, documents), "sets": rows}
        (aside / INDEX).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return rows


@dataclass(frozen=True)
class PromptSets:
    """Prompts of any draw: read from a folder where it holds them, drawn where it does not."""

    tokenizer: Any
    documents: TokenStore
    folder: Path | None = None
    stored: frozenset[Draw] = frozenset()
    """The draws whose prompts the folder holds."""

    @classmethod
    def open(cls, folder: Path, tokenizer: Any, documents: TokenStore) -> Self:
        """The sets that `write_prompts` wrote to ``folder``, unless what they depend on has changed since."""
        about = read_json(folder / INDEX)
        is_current = _basis(tokenizer, documents).items() <= about.items()
        fields = Draw.__dataclass_fields__
        draws = (Draw(**{name: row[name] for name in fields}) for row in about["sets"] if is_current)
        return cls(tokenizer, documents, folder, frozenset(draws))

    def of(self, draw: Draw) -> Prompts:
        if self.folder is not None and draw in self.stored:
            return Prompts.load(self.folder / draw.file)
        return draw.prompts(self.tokenizer, self.documents)
