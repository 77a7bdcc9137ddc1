"""Recall prompts: token ids at exact lengths, the answers, and the pieces that every such prompt is made of."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ropewalk.corpus.recall import is_held_out_key
from ropewalk.files import writing

PASSKEY_FORMS = {"passkey": "published", "passkey_varied": "varied"}
"""The passkey task's two families of prompts, and what tables call their forms."""
OTHERS = 7
"""Number of wrong keys or numbers that the right answer's likelihood is compared with."""


@dataclass(frozen=True)
class Prompt:
    """One document with a question about it, its answer, and what the answer's likelihood is compared with."""

    depth: float | None
    """Depth of the statement that is asked for, 0 at the start of the filler, or the middle of the band of depths in
    which its place was drawn; None where several places are drawn."""
    asked: str
    """The question as text."""
    answers: tuple[str, ...]
    """What the decoded text must hold."""
    right: tuple[tuple[int, ...], ...]
    """Continuations, as token ids, any of which must be more likely than all of the wrong ones."""
    wrong: tuple[tuple[int, ...], ...]
    """Wrong continuations, as token ids."""
    decode_tokens: int
    """Number of tokens to decode."""
    question_tokens: int
    """How many ids at the prompt's end are the question."""
    ids: tuple[int, ...] = ()
    """The prompt, BOS first; with the answer as one writes it, it has exactly the length."""
    cluster: int | None = None
    """Prompts with the same number are not independent trials, because they share their filler or the band of their
    depth; None where clusters are not recorded."""

    @property
    def chance(self) -> float:
        """Share of right answers when all continuations are as likely."""
        return len(self.right) / (len(self.right) + len(self.wrong))

    @property
    def document(self) -> tuple[int, ...]:
        """Token ids between BOS and the question."""
        return self.ids[1 : -self.question_tokens]

    @property
    def question(self) -> tuple[int, ...]:
        return self.ids[-self.question_tokens :]


@dataclass(frozen=True)
class Prompts:
    """Prompts of one family at one length, sorted by depth."""

    family: str
    length: int
    """Tokens of each prompt and its answer, with BOS."""
    prompts: tuple[Prompt, ...]

    @cached_property
    def hash(self) -> str:
        """sha256 of everything in them, as hexadecimal."""
        digest = hashlib.sha256(self._about.encode())
        for prompt in self.prompts:
            digest.update(f"{len(prompt.ids)}".encode() + np.asarray(prompt.ids, np.int32).tobytes())
        return digest.hexdigest()

    @property
    def _about(self) -> str:
        without_ids = [asdict(replace(prompt, ids=())) for prompt in self.prompts]
        # Sets without clusters keep the hash that they had before there were any.
        without_ids = [{k: v for k, v in about.items() if k != "cluster" or v is not None} for about in without_ids]
        return json.dumps({"family": self.family, "length": self.length, "prompts": without_ids})

    def save(self, path: Path) -> None:
        """Write the prompts as safetensors: the ids of each one, and the rest as JSON in the metadata."""
        tensors = {str(number): np.asarray(prompt.ids, np.int32) for number, prompt in enumerate(self.prompts)}
        with writing(path) as aside:
            save_file(tensors, aside, metadata={"about": self._about})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with safe_open(path, "np") as file:
            about = json.loads(file.metadata()["about"])
            prompts = []
            for number, entry in enumerate(about["prompts"]):
                right, wrong = (tuple(map(tuple, entry[side])) for side in ("right", "wrong"))
                ids = tuple(file.get_tensor(str(number)).tolist())
                values = {"answers": tuple(entry["answers"]), "right": right, "wrong": wrong, "ids": ids}
                prompts.append(Prompt(**entry | values))
            return cls(about["family"], about["length"], tuple(prompts))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text``, without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def first_id(tokenizer: Any) -> int:
    """Id of BOS, or of EOS if the tokenizer has no BOS."""
    first: int = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return first


def common_start(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning of ids; a tokenizer may join a question's end and the beginning of its answer."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def draw_key(rng: np.random.Generator) -> int:
    """A number of five digits that no recall document holds."""
    while True:
        key = int(rng.integers(10_000, 100_000))
        if is_held_out_key(key):
            return key
