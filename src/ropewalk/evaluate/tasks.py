"""The general benchmarks that evaluate can ask, as lm-evaluation-harness knows them; shots as in the paper (§4.3)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ropewalk.evaluate.questions import Splits, read_arc, read_gsm8k, read_hellaswag, read_mmlu, read_truthfulqa
from ropewalk.registry import Registry


@dataclass(frozen=True)
class Task:
    """A benchmark: everything that the configuration and the stage evaluate need to know of it."""

    name: str
    shots: int
    """Examples that go before each question."""
    metric: str = "acc"
    """The harness's name of the score; that of the open leaderboard's protocol, which the paper follows."""
    metric_filter: str = "none"
    """The harness's name of the way in which an answer is read."""
    lm_eval_name: str | None = None
    """The harness's name of the task; by default `name`."""
    lm_eval_folder: tuple[str, ...] = ()
    """Where the benchmark consists of several of the harness's tasks: the end of their folder's path."""
    read_local: Callable[[Path], dict[str, Splits]] | None = None
    """Reads its questions from local files, by the names of the harness's tasks; None where it comes from the hub."""


TASKS = Registry(
    (
        Task("arc_challenge", 25, "acc_norm", read_local=partial(read_arc, task="arc_challenge", name="Challenge")),
        Task("arc_easy", 25, "acc_norm", read_local=partial(read_arc, task="arc_easy", name="Easy")),
        Task("hellaswag", 10, "acc_norm", read_local=read_hellaswag),
        Task("mmlu", 5, lm_eval_folder=("mmlu", "default"), read_local=read_mmlu),
        Task("truthfulqa_mc1", 0, read_local=partial(read_truthfulqa, task="truthfulqa_mc1")),
        Task("truthfulqa_mc2", 0, read_local=partial(read_truthfulqa, task="truthfulqa_mc2")),
        # The paper has no GSM8K: the harness's own number of shots.
        Task("gsm8k", 5, "exact_match", "strict-match", read_local=read_gsm8k),
    ),
    group="ropewalk.tasks",
)


def local_tasks(benchmark: str, folder: str | Path) -> dict[str, Splits]:
    """The harness's tasks that ``benchmark`` consists of, with their questions from the files below ``folder``.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
        ValueError: a file does not hold such questions, or the benchmark has no reader of local files.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"evaluate.benchmarks.path {folder} is not a folder; give the one that holds the files")
    read = TASKS[benchmark].read_local
    if read is None:
        raise ValueError(f"{benchmark} has no local files; leave out evaluate.benchmarks.path to read it from the hub")
    return read(Path(folder))
