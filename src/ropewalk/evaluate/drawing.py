"""Which recall prompts an evaluation asks: each set is drawn once for a tokenizer, and is the same for every method.

The stage prompts writes the sets to a folder. An evaluation reads them there, and draws what the folder does not hold,
such as the prompts of a length that was added on the command line, by the same function.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ropewalk.config import EvaluateConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.cache import tokenizer_hash
from ropewalk.evaluate.needles import IN_TEXTS, needle_prompts
from ropewalk.evaluate.passkey import passkey_prompts
from ropewalk.evaluate.prompts import Prompts
from ropewalk.files import read_json, writing

INDEX = "prompts.json"


@dataclass(frozen=True)
class Draw:
    """All that the prompts of one family at one length depend on, beside the tokenizer and the documents."""

    family: str
    """passkey, or one of `ropewalk.evaluate.needles.FAMILIES`."""
    length: int
    """Tokens of a prompt and its answer."""
    trials: int
    depths: int
    seed: int

    @property
    def file(self) -> str:
        return f"{self.family}-{self.length}-{self.trials}-{self.depths}.safetensors"

    def prompts(self, tokenizer: Any, documents: TokenStore) -> Prompts:
        """Draw them; the same values give the same prompts.

        Raises:
            ValueError: the length leaves no room for the family's question, or no document is as long.
        """
        sizes = {"length": self.length, "trials": self.trials, "depths": self.depths, "seed": self.seed}
        if self.family == "passkey":
            return passkey_prompts(tokenizer, **sizes)
        texts = _texts(documents, self) if self.family == IN_TEXTS else []
        return needle_prompts(tokenizer, self.family, **sizes, texts=texts)


def _texts(documents: TokenStore, draw: Draw) -> list[list[int]]:
    enough = len(documents.long_documents(draw.length - 1))
    rows = documents.first_tokens(draw.length, documents=min(max(enough, 1), draw.trials))
    texts: list[list[int]] = rows[:, 1:].tolist()
    return texts


def passkey_draws(config: EvaluateConfig, *, target: int, seed: int) -> Iterator[Draw]:
    """The passkey task's, in order of the lengths.

    Args:
        target: the first target, tokens; beyond it there are fewer trials.
    """
    for length in config.passkey_lengths:
        trials = config.passkey_trials if length <= target else config.passkey_long_trials
        yield Draw("passkey", length, trials, config.passkey_depths, seed)


def needle_draws(config: EvaluateConfig, *, seed: int) -> Iterator[Draw]:
    """Every needle family at every needle length."""
    lengths = config.passkey_lengths if config.needle_lengths is None else config.needle_lengths
    for length in lengths:
        for family in config.needles:
            yield Draw(family, length, config.needle_trials, config.needle_depths, seed)


def retrieval_draws(config: EvaluateConfig, *, seed: int) -> Iterator[Draw]:
    """What is asked of whole documents and of retrieved chunks: the same families, with trials of their own."""
    own = config.retrieval
    for length in own.lengths:
        for family in own.tasks:
            depths = config.passkey_depths if family == "passkey" else config.needle_depths
            yield Draw(family, length, own.trials, min(depths, own.trials), seed)


def all_draws(config: EvaluateConfig, *, target: int, seed: int) -> list[Draw]:
    """Everything that the configuration asks for, each once."""
    draws = [
        *passkey_draws(config, target=target, seed=seed),
        *needle_draws(config, seed=seed),
        *retrieval_draws(config, seed=seed),
    ]
    return list(dict.fromkeys(draws))


def write_prompts(folder: Path, draws: Iterable[Draw], tokenizer: Any, documents: TokenStore) -> list[dict[str, Any]]:
    """Draw the sets into ``folder``, which is replaced: a safetensors file each, and what they are in `INDEX`.

    Returns:
        A row per set: its draw, how many prompts and tokens it has, and the hash of its content.
    """
    rows = []
    with writing(folder) as aside:
        aside.mkdir()
        for draw in draws:
            made = draw.prompts(tokenizer, documents)
            made.save(aside / draw.file)
            tokens = sum(len(prompt.ids) for prompt in made.prompts)
            rows.append({**asdict(draw), "prompts": len(made.prompts), "tokens": tokens, "hash": made.hash})
        about = {"tokenizer": tokenizer_hash(tokenizer), "documents": documents.hash, "sets": rows}
        (aside / INDEX).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return rows


@dataclass(frozen=True)
class DrawnPrompts:
    """Prompts of any draw: read from a folder where it holds them, drawn where it does not."""

    tokenizer: Any
    documents: TokenStore
    folder: Path | None = None
    kept: frozenset[Draw] = frozenset()

    @classmethod
    def open(cls, folder: Path, tokenizer: Any, documents: TokenStore) -> Self:
        """Those that `write_prompts` wrote to ``folder``, unless they are of another tokenizer or other documents."""
        about = read_json(folder / INDEX)
        same = (about["tokenizer"], about["documents"]) == (tokenizer_hash(tokenizer), documents.hash)
        fields = Draw.__dataclass_fields__
        draws = (Draw(**{name: row[name] for name in fields}) for row in about["sets"] if same)
        return cls(tokenizer, documents, folder, frozenset(draws))

    def of(self, draw: Draw) -> Prompts:
        if self.folder is not None and draw in self.kept:
            return Prompts.load(self.folder / draw.file)
        return draw.prompts(self.tokenizer, self.documents)
