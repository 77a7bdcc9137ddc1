"""General benchmarks (MMLU, HellaSwag, TruthfulQA, ARC, GSM8K) through lm-evaluation-harness, shots as in the paper.

The harness itself makes the prompts and scores them; here it gets a model under a scaling, and questions from local
files (`ropewalk.evaluate.questions`) where a folder is given, from the hub otherwise.
"""

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ropewalk.evaluate.cache import json_hash
from ropewalk.evaluate.questions import Splits, local_tasks
from ropewalk.rope import LengthSwitch
from ropewalk.rope.switching import extend_by_length

SHOTS = {
    "arc_challenge": 25,
    "arc_easy": 25,
    "hellaswag": 10,
    "mmlu": 5,
    "truthfulqa_mc1": 0,
    "truthfulqa_mc2": 0,
    "gsm8k": 5,
}
"""Examples in each prompt: LongRoPE's §4.3, and the harness's own number for GSM8K."""
_METRICS = {"arc_challenge": "acc_norm", "arc_easy": "acc_norm", "hellaswag": "acc_norm", "gsm8k": "exact_match"}
"""Of the open leaderboard's protocol, which the paper follows; acc for the others."""


@dataclass(frozen=True)
class Questions:
    """What is asked: a benchmark, how many examples go before each question, and how many questions."""

    benchmark: str
    folder: str | None = None
    """Of local files; None for the hub."""
    limit: int | None = None
    """Questions of each of the harness's tasks; None for all."""
    shots: int | None = None
    """In place of `SHOTS`."""

    @property
    def examples(self) -> int:
        return SHOTS[self.benchmark] if self.shots is None else self.shots

    @property
    def source(self) -> str:
        """A hash of the questions, or where on the hub they come from; raises as `local_tasks`."""
        return "hub" if self.folder is None else json_hash(local_tasks(self.benchmark, self.folder))


def benchmark_row(
    model: Any, tokenizer: Any, switch: LengthSwitch, questions: Questions, *, max_length: int
) -> dict[str, Any]:
    """Score of one benchmark, every prompt under the scaling for its own length.

    Args:
        max_length: window in tokens; the harness cuts the beginning of longer prompts off, and ``cut`` says how many.

    Raises:
        ValueError: lm_eval is not installed.
        FileNotFoundError: a local file is not there.
    """
    harness = _harness()
    extend_by_length(model, switch)
    tasks = _tasks(harness, questions)
    bos = tokenizer.bos_token_id is not None
    # One prompt at a time: rows of a batch would be padded to one length, which the factors are chosen by.
    wrapped = harness.HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=1,
        max_length=max_length,
        add_bos_token=bos,
        device=str(next(model.parameters()).device),
    )
    found = harness.simple_evaluate(
        wrapped, tasks=tasks, limit=questions.limit, bootstrap_iters=0, log_samples=True, random_seed=0
    )
    metric = _METRICS.get(questions.benchmark, "acc")
    name = f"{metric},strict-match" if metric == "exact_match" else f"{metric},none"
    # A sample for each way of reading an answer.
    samples = {task: {own["doc_id"]: own for own in found["samples"][task]} for task in found["samples"]}
    counts = {task: len(own) for task, own in samples.items()}
    asked = sum(counts.values())
    # MMLU's subjects count by their questions.
    score = sum(found["results"][task][name] * count for task, count in counts.items()) / asked
    return {
        "task": questions.benchmark,
        "shots": questions.examples,
        "metric": metric,
        "score": score,
        "questions": asked,
        "cut": sum(_is_cut(tokenizer, one, max_length) for own in samples.values() for one in own.values()) / asked,
        "max_length": max_length,
        "protocol": f"lm-evaluation-harness {harness.version}, {questions.examples} shots, {metric}, "
        + ("all questions" if questions.limit is None else f"the first {questions.limit} questions of each task"),
    }


@dataclass(frozen=True)
class _Harness:
    simple_evaluate: Any
    HFLM: Any
    TaskManager: Any
    DatasetDict: Any
    Dataset: Any
    version: str


def _harness() -> _Harness:
    try:
        from importlib.metadata import version

        import lm_eval
        from datasets import Dataset, DatasetDict
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise ValueError(
            f"general benchmarks need lm-evaluation-harness ({error.name} is not installed): "
            "pip install 'ropewalk[bench]', or leave evaluate.benchmarks.tasks empty"
        ) from None
    # It tells every default it sets.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return _Harness(lm_eval.simple_evaluate, HFLM, TaskManager, DatasetDict, Dataset, version("lm_eval"))


@cache
def _manager(kind: Any) -> Any:
    """It reads thousands of files when it is made."""
    return kind()


def _tasks(harness: _Harness, questions: Questions) -> list[Any]:
    """The harness's own tasks, with the questions of the local files put in where there are any."""
    manager = _manager(harness.TaskManager)
    shots = {"num_fewshot": questions.examples}
    if questions.folder is None:
        names = [questions.benchmark]
        if questions.benchmark == "mmlu":
            names = [n for n in manager.all_subtasks if Path(manager.task_index[n].yaml_path).parts[-3:-1] == _MMLU]
        specs = [{"task": name, **shots} for name in names]
    else:
        local = local_tasks(questions.benchmark, questions.folder)
        specs = [{"task": name, **shots, **_overrides(harness, splits)} for name, splits in local.items()]
    loaded = manager.load({"group": questions.benchmark, "task": specs})
    return list(loaded["tasks"].values())


_MMLU = ("mmlu", "default")


def _overrides(harness: _Harness, splits: Splits) -> dict[str, Any]:
    rows = harness.DatasetDict({name: harness.Dataset.from_list(own) for name, own in splits.items()})
    found: dict[str, Any] = {"custom_dataset": lambda **_: rows}
    if set(splits) == {"validation"}:
        # Examples come from the other questions; the harness leaves out the one that is asked.
        found |= {"training_split": None, "fewshot_split": "validation"}
    return found


def _is_cut(tokenizer: Any, sample: dict[str, Any], max_length: int) -> bool:
    """Whether any of a question's prompts is longer than the window."""
    lengths = []
    for arguments in sample["arguments"].values() if isinstance(sample["arguments"], dict) else sample["arguments"]:
        texts = arguments.values() if isinstance(arguments, dict) else arguments
        text = "".join(part for part in texts if isinstance(part, str))
        lengths.append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return max(lengths, default=0) > max_length
