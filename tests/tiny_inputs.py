"""A checkpoint and a folder of texts that a whole pipeline takes seconds for, and the overrides that make it so."""

import sysconfig
from pathlib import Path

from tiny_models import byte_tokenizer, tiny_llama

MODEL, TEXTS = "model of bytes", "texts"
BUDGETS = (
    "seed=1",
    "corpus.search_share=0.3",
    "corpus.test_share=0.3",
    "search.gradient_steps=2",
    "search.trials=12",
    "search.initial_population=3",
    "search.population_size=3",
    "search.num_parents=3",
    "search.documents=2",
    "search.race.blocks=0",
    "evaluate.documents=2",
    "evaluate.long_documents=2",
    "evaluate.passkey_lengths=[256]",
    "evaluate.passkey_trials=2",
    "evaluate.passkey_long_trials=2",
    "evaluate.passkey_depths=2",
    "evaluate.cache=null",
)


def write_inputs(folder: Path) -> None:
    """A random model with a window of 64 tokens, and 20 texts of 6,000 bytes."""
    tiny_llama(vocab_size=258).save_pretrained(folder / MODEL)
    byte_tokenizer().save_pretrained(folder / MODEL)
    (folder / TEXTS).mkdir()
    library = Path(sysconfig.get_path("stdlib"))
    for source in sorted(library.glob("*.py"), key=lambda path: -path.stat().st_size)[:20]:
        text = source.read_text(encoding="utf-8")[:6000]
        (folder / TEXTS / f"{source.stem}.txt").write_text(text, encoding="utf-8")
