"""What the stage evaluate reads, made from tiny models in a second, and the settings that fit it."""

from pathlib import Path
from typing import Any

import torch

from ropewalk.corpus.documents import Document
from ropewalk.corpus.store import TokenStore, write_store
from ropewalk.files import write_json
from ropewalk.models.base import describe
from ropewalk.rope import LengthSwitch, RopeScaling
from tiny_models import WINDOW, byte_tokenizer, tiny_llama

FIRST, SECOND = 512, 1024
BYTES = 258
"""Vocabulary of the byte tokenizer."""
OVERRIDES = (
    f"extension.target={FIRST}",
    f"extension.second_target={SECOND}",
    f"extension.search_first.lengths=[{FIRST}]",
    f"extension.search_second.lengths=[{SECOND}]",
    "extension.search_second.trials=[0]",
    "extension.search_second.gradient_steps=[1]",
    f"extension.recover.lengths=[{WINDOW}]",
    "finetune.recall_share=0",
    "finetune.first.length=256",
    f"finetune.second.length={FIRST}",
    f"evaluate.lengths=[{WINDOW},{FIRST},{SECOND}]",
    f"evaluate.base_lengths=[{WINDOW},{FIRST},{SECOND}]",
    "evaluate.long_documents=2",
    f"evaluate.passkey_lengths=[{FIRST}]",
    "evaluate.passkey_trials=4",
    "evaluate.passkey_depths=2",
)
"""Overrides of the whole configuration, for `evaluate_inputs`."""


def evaluate_inputs(folder: Path) -> Path:
    """A results folder after the stage recover: a random model, one of other weights as its fine-tuned self."""
    tokenizer = byte_tokenizer()
    base, tuned = tiny_llama(vocab_size=BYTES), _other_weights()
    for path, model in ((folder / "base", base), (folder / "checkpoints/finetune_second", tuned)):
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    described = describe(base, name="tiny", path=str(folder / "base"), original_length=None)
    described.write(folder / "base.json")
    first = RopeScaling(tuple(1 + pair for pair in range(8)), WINDOW, FIRST, attention_factor=1.1)
    second = RopeScaling(tuple(1 + 2 * pair for pair in range(8)), WINDOW, SECOND, attention_factor=1.2)
    short = RopeScaling((1.0,) * 8, WINDOW, WINDOW)
    factors = folder / "factors"
    factors.mkdir()
    for name, scaling in (("first", first), ("first_gradient", first), ("second", second)):
        (factors / f"{name}.json").write_text(scaling.to_json())
    switch = LengthSwitch(((WINDOW, short), (FIRST, first), (SECOND, second)))
    (factors / "recovered.json").write_text(switch.to_json())
    byte_store(folder / "tokens" / "train")
    store = byte_store(folder / "tokens" / "test")
    counts = {"documents": len(store), "tokens": 4 * SECOND, "longest": store.longest, "hash": store.hash}
    write_json(folder / "tokens/card.json", {"corpus": "random", "test": counts})
    return folder


def _other_weights() -> Any:
    model = tiny_llama(vocab_size=BYTES)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    return model


def byte_store(folder: Path, *, seed: int = 0) -> TokenStore:
    """Four documents of random bytes, each as long as the second target."""
    generator = torch.Generator().manual_seed(seed)
    made = [
        (
            Document(str(number), "random", "", str(number)),
            torch.randint(0, 256, (SECOND,), generator=generator).tolist(),
        )
        for number in range(4)
    ]
    write_store(folder, made, bos=256, eos=257, vocab_size=BYTES)
    return TokenStore(folder)
