"""General benchmarks (MMLU, HellaSwag, TruthfulQA, ARC, GSM8K) through lm-evaluation-harness, shots as in the paper.

The harness makes the prompts and scores them, of questions from local files or from the hub.
"""

import logging
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ropewalk.evaluate.cache import json_hash
from ropewalk.evaluate.questions import Splits
from ropewalk.evaluate.tasks import TASKS, local_tasks
from ropewalk.rope import LengthSwitch


@dataclass(frozen=True)
class Questions:
    """A benchmark, where its questions come from, how many are asked and how many examples go before each."""

    benchmark: str
    folder: str | None = None
    """Folder of local files; None for the hub."""
    limit: int | None = None
    """Number of questions asked in each of the harness's tasks; None for all."""
    shots: int | None = None
    """Examples before each question, in place of the task's own number."""

    @property
    def examples(self) -> int:
        return TASKS[self.benchmark].shots if self.shots is None else self.shots

    @property
    def source(self) -> str:
        """A hash of the questions, or where on the hub they come from; raises as `local_tasks`."""
        return "hub" if self.folder is None else json_hash(local_tasks(self.benchmark, self.folder))


def benchmark_row(
    model: Any, tokenizer: Any, switch: LengthSwitch, questions: Questions, *, max_length: int, batch_tokens: int
) -> dict[str, Any]:
    """Score of one benchmark, every prompt under the scaling for its own length.

    Args:
        max_length: window in tokens; the harness cuts the beginning of longer prompts off, and ``cut`` says how many.
        batch_tokens: tokens in a forward pass, as in `ropewalk.evaluate.harness`; scores do not depend on it.

    Raises:
        ValueError: lm_eval is not installed.
        FileNotFoundError: a local file is not there.
    """
    _require_harness()
    from lm_eval import simple_evaluate

    from ropewalk.evaluate.harness import BatchedModel

    wrapped = BatchedModel(model, tokenizer, switch, max_length=max_length, batch_tokens=batch_tokens)
    tasks, limit = _tasks(questions), questions.limit
    results = simple_evaluate(wrapped, tasks=tasks, limit=limit, bootstrap_iters=0, log_samples=True, random_seed=0)
    task = TASKS[questions.benchmark]
    metric = f"{task.metric},{task.metric_filter}"
    # The harness lists a question once for each way of reading its answer.
    samples = {name: {sample["doc_id"]: sample for sample in of_task} for name, of_task in results["samples"].items()}
    counts = {name: len(by_question) for name, by_question in samples.items()}
    asked = sum(counts.values())
    cut = sum(_is_cut(tokenizer, sample, max_length) for of_task in samples.values() for sample in of_task.values())
    # MMLU's subjects count by their questions.
    score = sum(results["results"][name][metric] * count for name, count in counts.items()) / asked
    return {
        "task": questions.benchmark,
        "shots": questions.examples,
        "metric": task.metric,
        "score": score,
        "questions": asked,
        "cut": cut / asked,
        "max_length": max_length,
        "protocol": f"lm-evaluation-harness {version('lm_eval')}, {questions.examples} shots, {task.metric}, "
        + ("all questions" if limit is None else f"the first {limit} questions of each task"),
    }


def _require_harness() -> None:
    """Raise ValueError, naming the extra, unless lm-evaluation-harness is installed."""
    try:
        import datasets  # noqa: F401
        import lm_eval  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"general benchmarks need lm-evaluation-harness ({error.name} is not installed): "
            "pip install 'ropewalk[bench]', or leave evaluate.benchmarks.tasks empty"
        ) from None
    # The harness reports every default that it sets.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


@cache
def _manager() -> Any:
    """The harness's index of tasks, which reads thousands of files when it is made."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _tasks(questions: Questions) -> list[Any]:
    """The harness's own tasks, with the questions of the local files put in where there are any."""
    manager = _manager()
    shots = {"num_fewshot": questions.examples}
    if questions.folder is None:
        task = TASKS[questions.benchmark]
        names, folder = [task.lm_eval_name or task.name], task.lm_eval_folder
        if folder:
            paths = {name: Path(manager.task_index[name].yaml_path).parent for name in manager.all_subtasks}
            names = [name for name, path in paths.items() if path.parts[-len(folder) :] == folder]
        specs = [{"task": name, **shots} for name in names]
    else:
        local = local_tasks(questions.benchmark, questions.folder)
        specs = [{"task": name, **shots, **_overrides(splits)} for name, splits in local.items()]
    loaded = manager.load({"group": questions.benchmark, "task": specs})
    return list(loaded["tasks"].values())


def _overrides(splits: Splits) -> dict[str, Any]:
    """What of a task's description in the harness is replaced, for local questions."""
    from datasets import Dataset, DatasetDict

    data = DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})
    overrides: dict[str, Any] = {"custom_dataset": lambda **_: data}
    if set(splits) == {"validation"}:
        # Examples come from the other questions; the harness leaves out the one that is asked.
        overrides |= {"training_split": None, "fewshot_split": "validation"}
    return overrides


def _is_cut(tokenizer: Any, sample: dict[str, Any], max_length: int) -> bool:
    """Whether any of a question's prompts is longer than the window."""
    lengths = []
    for arguments in sample["arguments"].values() if isinstance(sample["arguments"], dict) else sample["arguments"]:
        texts = arguments.values() if isinstance(arguments, dict) else arguments
        text = "".join(part for part in texts if isinstance(part, str))
        lengths.append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return max(lengths, default=0) > max_length
