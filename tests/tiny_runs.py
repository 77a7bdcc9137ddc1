"""A store of random tokens, and the small search and training that a test and the process it kills both run."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from processes import kill_self
from ropewalk.config import FinetuneConfig, FinetuneStepConfig, ParallelConfig, SearchConfig
from ropewalk.corpus.documents import Document
from ropewalk.corpus.segments import Rows, Segments
from ropewalk.corpus.store import TokenStore, write_store
from ropewalk.finetune import module
from ropewalk.finetune.train import finetune
from ropewalk.models.loss import token_losses
from ropewalk.rope import RopeScaling
from ropewalk.search.fitness import Evaluation, Fitness, Part
from ropewalk.search.history import SearchResult
from ropewalk.search.space import SearchSpace
from ropewalk.search.study import Search
from ropewalk.search.token_weights import WeightedRows
from tiny_models import VOCABULARY, WINDOW, byte_tokenizer, tiny_llama

BOS, EOS = 0, 1
SPACE = SearchSpace(
    rotary_dim=16,
    base=10_000.0,
    original_length=WINDOW,
    target_length=4 * WINDOW,
    upper=5.0,
    step=0.01,
    n_hats=(0, 1, 2, 4),
)
SEARCH = SearchConfig(
    name="tiny",
    gradient_steps=8,
    gradient_batch_size=1,
    trials=14,
    initial_population=6,
    population_size=4,
    num_parents=4,
)


def token_store(folder: Path, *, documents: int = 4, tokens: int = 600) -> TokenStore:
    """Documents of random tokens, each of which repeats its first 24 tokens over and over with some changes."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(documents):
        tune = torch.randint(3, VOCABULARY, (24,), generator=generator)
        ids = tune.repeat(tokens // 24 + 1)[:tokens]
        changed = torch.rand(tokens, generator=generator) < 0.1
        ids = torch.where(changed, torch.randint(3, VOCABULARY, (tokens,), generator=generator), ids)
        made.append((Document(str(number), "c4", "", str(number)), ids.tolist()))
    if not folder.is_dir():
        write_store(folder, made, bos=BOS, eos=EOS, vocab_size=VOCABULARY)
    return TokenStore(folder)


def search(
    folder: Path,
    *,
    kill_at: str = "",
    space: SearchSpace = SPACE,
    config: SearchConfig = SEARCH,
    model: Any = None,
    documents: int = 2,
    pause: float = 0.0,
    waits_for: Path | None = None,
    **more: Any,
) -> Any:
    """(result, reads): a search with its state in ``folder``/state that logs all it pays for in ``folder``/reads.

    ``kill_at`` is the line of the log after which the process kills itself: "read 7", "step 6"; ``pause`` the
    seconds that each read takes longer. No read ends before the file ``waits_for`` is there.
    """
    store = token_store(folder / "store")
    log = folder / "reads"

    def paid(kind: str) -> None:
        lines = log.read_text().splitlines() if log.is_file() else []
        line = f"{kind} {sum(line.startswith(kind) for line in lines)}"
        with log.open("a") as out:
            out.write(line + "\n")
        if line == kill_at:
            kill_self()

    class Logged(Fitness):
        def evaluate(self, candidate: RopeScaling, **more: Any) -> Evaluation:
            evaluation = super().evaluate(candidate, **more)
            time.sleep(pause)
            while waits_for and not waits_for.is_file():
                time.sleep(0.02)
            paid("read")
            return evaluation

    segments = Segments(store, length=space.target_length, batch_size=1, steps=config.gradient_steps, seed=5)

    def batch(step: int) -> WeightedRows:
        paid("step")
        return WeightedRows(segments.step(step).ids)

    rows = torch.from_numpy(store.first_tokens(space.target_length, documents=documents))
    result: SearchResult = Search(
        fitness=Logged(
            model or tiny_llama(), (Part(rows),), blocks=config.race.blocks, shorter=tuple(config.race.shorter)
        ),
        batch=batch,
        space=space,
        config=config,
        state_folder=folder / "state",
        **{"seed": 3, **more},
    ).run()
    return result, log.read_text().splitlines()


STEP = FinetuneStepConfig(length=48, steps=9, batch_size=4, learning_rate=3e-3, warmup_steps=2)
FINETUNE = FinetuneConfig(
    name="tiny", first=STEP, second=STEP, micro_batch_size=2, precision="32-true", checkpoint_every=2, recall_share=0.0
)
SCALING = RopeScaling((1.0, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 4.0), WINDOW, 4 * WINDOW, attention_factor=1.1)


def train(
    folder: Path,
    *,
    before_step: Callable[[int], None] = lambda step: None,
    step: FinetuneStepConfig = STEP,
    config: FinetuneConfig = FINETUNE,
    scaling: RopeScaling | None = SCALING,
    model: Any = None,
    parallel: ParallelConfig | None = None,
) -> tuple[Any, list[dict[str, float]]]:
    """(model, history); ``before_step`` is called with the number of the optimizer step that the rows are for."""
    model = model or tiny_llama()
    store = token_store(folder / "store")
    original = Segments.step

    def watched(segments: Segments, number: int) -> Rows:
        before_step(number)
        return original(segments, number)

    Segments.step = watched  # type: ignore[method-assign]
    try:
        rows = finetune(
            model,
            byte_tokenizer(),
            store,
            step,
            config,
            scaling=scaling,
            seed=3,
            state_folder=folder / "state",
            label="tiny",
            parallel=parallel,
        )
    finally:
        Segments.step = original  # type: ignore[method-assign]
    return model, rows


@contextmanager
def smooth_adam() -> Iterator[None]:
    """Train by Adam with all its states, whose steps shrink with the gradient as those of gradient descent do.

    Adam's usual eps of 1e-8 makes a step of full size, up or down, of a gradient that is 0 but for rounding, so that
    weights after it are no measure. With an eps of the size of a gradient, a rounding error stays one.
    """

    def make(name: str, groups: list[dict[str, Any]], *, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-3, weight_decay=weight_decay)

    original, module.make_optimizer = module.make_optimizer, make  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.make_optimizer = original  # type: ignore[attr-defined]


def train_until(folder: Path, last_step: int) -> None:
    """Train, and kill the process when the rows of ``last_step`` are asked for."""
    train(folder, before_step=lambda step: kill_self() if step == last_step else None)


def tunes(rows: int, length: int, *, seed: int) -> torch.Tensor:
    """(rows, length) tokens after BOS, each row 20 random tokens over and over: the first 20 are beyond foretelling."""
    generator = torch.Generator().manual_seed(seed)
    copies = torch.randint(3, VOCABULARY, (rows, 20), generator=generator).repeat(1, length // 20 + 1)[:, :length]
    copies[:, 0] = BOS
    return copies


def trained_llama(steps: int = 120) -> Any:
    """A tiny Llama that has learned in its window of 64 tokens to continue a tune (two seconds)."""
    model = tiny_llama(initializer_range=0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        loss = token_losses(model, tunes(16, WINDOW, seed=step)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()
