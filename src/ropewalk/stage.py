"""One run of one stage: its folders, its resumable state, its MLflow run.

A stage runs three ways: under DVC (``-cp "$PWD" -cn resolved``: results go to ``results/``), alone as a
Hydra app (results go to ``outputs/``), and in a Hydra sweep with ``-m`` (results go to ``multirun/``).
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from ropewalk.app import app
from ropewalk.composition import section
from ropewalk.config import PLACEMENT, Config
from ropewalk.consistency import check_window
from ropewalk.files import file_hash, write_json
from ropewalk.ways import is_left_out, leave_out


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of one stage."""

    name: str
    config: Config
    sections: tuple[str, ...]
    inputs_hash: str
    is_first_process: bool = True
    """Whether this is the first of the processes that run the stage together, whose results alone are kept."""
    results: Path | None = None
    """Folder in place of config.output, for what the other processes write and nobody reads."""

    @classmethod
    def of(
        cls,
        name: str,
        config: Config,
        *,
        sections: Sequence[str],
        inputs: Sequence[str] = (),
        is_first_process: bool = True,
    ) -> "Stage":
        """The stage that reads these ``sections`` and ``inputs``, as in `run`.

        Raises:
            ValueError: the extension does not lead out of the window of the base model among the inputs.
        """
        return cls(name, config, tuple(sections), _hash_inputs(config, inputs), is_first_process)

    @property
    def output(self) -> Path:
        """Folder for the stage's results."""
        return self.results or Path(self.config.output)

    @property
    def inputs(self) -> Path:
        """Folder with the results of earlier stages."""
        return Path(self.config.inputs)

    @property
    def state(self) -> Path:
        """Folder for resumable state: one per configuration and inputs, so that no run takes another one's."""
        folder = Path(self.config.work) / self.name / self.key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def key(self) -> str:
        """Hash of all that the stage's results depend on beside the code: its configuration and its inputs."""
        return self._hash(inputs=self.inputs_hash)

    @property
    def config_hash(self) -> str:
        """Hash of the sections that the stage reads and of the seed, without what says where a search runs."""
        return self._hash()

    def _hash(self, **extra: str) -> str:
        values = {**section(self.config, *self.sections), "seed": self.config.seed, **extra}
        if "search" in values:
            values["search"] = {key: value for key, value in values["search"].items() if key not in PLACEMENT}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def values(self, *names: str) -> dict[str, Any]:
        """Plain values of the named sections, for records."""
        return section(self.config, *names)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write metrics/<stage>.json, which `dvc metrics` and MLflow read."""
        write_json(self.output / "metrics" / f"{self.name}.json", metrics)


def run(
    name: str,
    work: Callable[[Stage], None],
    *,
    sections: Sequence[str],
    inputs: Sequence[str] = (),
    together: bool = False,
    whole: bool = True,
) -> None:
    """Run ``work`` as the Hydra app ``name``; exits with a one-line message on bad input.

    Args:
        sections: sections of the configuration that the stage reads.
        inputs: files below ``config.inputs`` that the stage reads; they must exist, and their hash is part of the key
            of the stage's resumable state.
        together: whether all processes of torchrun, srun or Lightning run the stage together when the section parallel
            asks for several devices; only the first one is tracked and writes the results.
        whole: whether the configuration must be whole and agree with itself; otherwise only ``sections`` must be.
    """

    def task(config: Config) -> None:
        several_processes = together and config.parallel.devices * config.parallel.nodes > 1
        if several_processes:
            _check_shared_output(config)
        is_first = not several_processes or _process_rank() == 0
        run_stage(name, work, config, sections=sections, inputs=inputs, is_first_process=is_first)

    app(name, task, sections=None if whole else sections)


def _process_rank() -> int:
    """Rank of this process among those of torchrun, srun or Lightning's own launcher; 0 where it is the only one."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    # Lightning's launcher numbers the processes of each machine, and the user the machines.
    return int(os.environ.get("LOCAL_RANK", "0")) or int(os.environ.get("NODE_RANK", "0"))


def tracked(stage: Stage) -> AbstractContextManager[None]:
    """The MLflow run around the work of a stage."""
    # Imported late, because MLflow takes a second to import and a mistake should be reported at once.
    from ropewalk import tracking

    return tracking.stage_run(
        stage.name,
        stage.config.tracking,
        tags={
            "config_hash": stage.config_hash,
            "model": stage.config.model.name,
            "way": stage.config.extension.way,
        },
        params={**stage.values(*stage.sections), "seed": stage.config.seed},
        followed={
            key: reason for key, reason in stage.config.followed.items() if key.partition(".")[0] in stage.sections
        },
        state=stage.state,
        metrics=stage.output / "metrics" / f"{stage.name}.json",
    )


def run_stage(
    name: str,
    work: Callable[[Stage], None],
    config: Config,
    *,
    sections: Sequence[str],
    inputs: Sequence[str] = (),
    is_first_process: bool = True,
) -> None:
    """Run ``work`` under ``config`` in an MLflow run, or leave the stage out where the extension's way does.

    Args:
        sections, inputs: as in `run`.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: the extension does not lead out of the window of the base model among the inputs.
    """
    _check_inputs(config, inputs)
    if is_left_out(name, config.extension.way):
        if is_first_process:
            leave_out(name, inputs=Path(config.inputs), output=Path(config.output))
            print(f"{name}: nothing to do with extension.way={config.extension.way}")
        return
    stage = Stage.of(name, config, sections=sections, inputs=inputs, is_first_process=is_first_process)
    if not stage.is_first_process:
        with tempfile.TemporaryDirectory() as folder:
            _do(work, dataclasses.replace(stage, results=Path(folder)))
        return
    with tracked(stage):
        _do(work, stage)
    # The results are whole, so a forced run starts afresh. Another machine may remove the folder too.
    shutil.rmtree(stage.state, ignore_errors=True)


def _do(work: Callable[[Stage], None], stage: Stage) -> None:
    """Do the work of a stage; raises MemoryError, with the setting to change, where memory does not suffice."""
    try:
        work(stage)
    except (MemoryError, RuntimeError) as error:
        # Imported late, because they take seconds and not every stage needs them.
        from ropewalk.memory_advice import stage_advice
        from ropewalk.models.memory import within_memory

        with within_memory(stage_advice(stage.name, stage.config)):
            raise error


def _check_shared_output(config: Config) -> None:
    """Raise ValueError where each of the processes that torchrun or srun started would write to a folder of its own."""
    is_launched = any(name in os.environ for name in ("RANK", "SLURM_PROCID"))
    if is_launched and Path(config.output).resolve() == Path(HydraConfig.get().runtime.output_dir).resolve():
        raise ValueError("output must name one folder for all processes of torchrun or srun, as output=outputs/my-run")


def _check_inputs(config: Config, inputs: Sequence[str]) -> None:
    """Raise FileNotFoundError where a file that a stage reads does not exist."""
    for name in inputs:
        path = Path(config.inputs) / name
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is not there; run the stage that makes it first "
                "(`dvc repro` and pipelines/extend.py run them all)"
            )


def _hash_inputs(config: Config, inputs: Sequence[str]) -> str:
    """Hash of the files that a stage reads.

    Raises:
        ValueError: the extension does not lead out of the window of the base model among them.
    """
    folder, digest = Path(config.inputs), hashlib.sha256()
    for name in inputs:
        path = folder / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            relative = file.relative_to(folder)
            # A leading dot marks what a killed process left half-written, which is no input.
            if file.is_file() and not any(part.startswith(".") for part in relative.parts):
                digest.update(f"{relative}:{file_hash(file)}".encode())
    if "base.json" in inputs:
        # Late, because transformers takes seconds to import and not every stage needs it.
        from ropewalk.models.base import BaseModel

        check_window(config, BaseModel.read(folder / "base.json").window)
    return digest.hexdigest()
