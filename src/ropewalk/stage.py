"""What every script under pipelines/ shares: a checked configuration, one MLflow run, one-line errors, folders.

A stage runs three ways: under DVC (``-cp "$PWD" -cn resolved``: results go to ``results/``), alone as a
Hydra app (results go to ``outputs/``), and in a Hydra sweep with ``-m`` (results go to ``multirun/``).
"""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ropewalk.composition import checked, explain, register, section
from ropewalk.config import PLACEMENT, Config
from ropewalk.consistency import check_window
from ropewalk.files import file_hash, read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, OSError, MemoryError)
"""What a user can put right: reported in one line, without a traceback (ROPEWALK_TRACEBACK=1 shows it)."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of one stage."""

    name: str
    config: Config
    sections: tuple[str, ...]
    inputs_hash: str
    is_first_process: bool = True
    """Of the processes that do the stage together ..."""
    results: Path | None = None
    """... and where the others write what nobody reads."""

    @property
    def output(self) -> Path:
        return self.results or Path(self.config.output)

    @property
    def inputs(self) -> Path:
        """Folder with the results of earlier stages."""
        return Path(self.config.inputs)

    @property
    def state(self) -> Path:
        """Folder for resumable state: one per configuration and inputs, so that no other run's is taken."""
        folder = Path(self.config.work) / self.name / self._hash(inputs=self.inputs_hash)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def config_hash(self) -> str:
        return self._hash()

    def _hash(self, **more: str) -> str:
        values = {**section(self.config, *self.sections), "seed": self.config.seed, **more}
        if "search" in values:
            values["search"] = {key: value for key, value in values["search"].items() if key not in PLACEMENT}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def values(self, *names: str) -> dict[str, Any]:
        """Plain values of the named sections, for records."""
        return section(self.config, *names)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        write_json(self.output / "metrics" / f"{self.name}.json", metrics)


def run(
    name: str,
    work: Callable[[Stage], None],
    *,
    sections: Sequence[str],
    inputs: Sequence[str] = (),
    together: bool = False,
) -> None:
    """Run ``work`` as the Hydra app ``name``; exits with a one-line message on bad input.

    Args:
        sections: the sections of the configuration that the stage reads.
        inputs: files below ``config.inputs`` that the stage reads; they must be there, and their hash is
            part of the key of its resumable state.
        together: the stage is done by all processes of torchrun, srun or Lightning together where the section parallel
            asks for several devices; the first one alone tracks it and writes its results.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    register()

    def task(composed: DictConfig) -> None:
        # A sweep goes on with its other jobs when one fails, so its error must get through to Hydra.
        sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
        with nullcontext() if sweeping else _one_line(name):
            config = checked(composed)
            _check_output(config)
            together_here = together and config.parallel.devices * config.parallel.nodes > 1
            if together_here:
                _check_one_output(config)
            first = not together_here or _process_rank() == 0
            _run(Stage(name, config, tuple(sections), _hash_inputs(config, inputs), first), work)

    with _one_line(name):
        hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")(task)()


def _process_rank() -> int:
    """Of this process among those of torchrun, srun or Lightning's own launcher; 0 where it is alone."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    # Lightning's launcher numbers the processes of each machine, and the user the machines.
    return int(os.environ.get("LOCAL_RANK", "0")) or int(os.environ.get("NODE_RANK", "0"))


def _run(stage: Stage, work: Callable[[Stage], None]) -> None:
    if not stage.is_first_process:
        with tempfile.TemporaryDirectory() as folder:
            work(dataclasses.replace(stage, results=Path(folder)))
        return
    # Late, because MLflow takes a second to import and a mistake should be told at once.
    from ropewalk import tracking

    with tracking.stage_run(stage):
        work(stage)
    # Done: the results are whole, so a forced run starts afresh. Another machine may remove the folder too.
    shutil.rmtree(stage.state, ignore_errors=True)


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """End the process with one line and code 1 on what a user can put right."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; run the same command again to go on")
    except (HydraException, OmegaConfBaseException) as error:
        _stop(name, explain(error), error)
    except EXPECTED as error:
        _stop(name, " ".join(str(error).split()), error)
    except Exception as error:
        # SQLite's, inside the errors of MLflow and Optuna.
        if "disk is full" not in str(error):
            raise
        _stop(name, "no space left on the disk; free some and run the same command again", error)


def _check_output(config: Config) -> None:
    """Raise ValueError where the jobs of a sweep would write into one folder."""
    own = HydraConfig.get()
    if own.mode == RunMode.MULTIRUN and not Path(config.output).resolve().is_relative_to(own.runtime.output_dir):
        raise ValueError(f"output must be left out in a sweep, whose jobs write below {own.sweep.dir}")


def _check_one_output(config: Config) -> None:
    """Raise ValueError where processes that others started would each have a folder of its own, named by the time."""
    others = any(name in os.environ for name in ("RANK", "SLURM_PROCID"))
    if others and Path(config.output).resolve() == Path(HydraConfig.get().runtime.output_dir).resolve():
        raise ValueError("output must name one folder for all processes of torchrun or srun, as output=outputs/my-run")


def _stop(name: str, message: str, error: BaseException) -> None:
    if os.environ.get("ROPEWALK_TRACEBACK") == "1":
        raise error
    sys.exit(f"{name}: {message}")


def _hash_inputs(config: Config, inputs: Sequence[str]) -> str:
    """Hash of the files that a stage reads.

    Raises:
        FileNotFoundError: one is not there.
        ValueError: the road does not fit the base model that they are of.
    """
    folder, digest = Path(config.inputs), hashlib.sha256()
    for name in inputs:
        path = folder / name
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there; run `dvc repro` up to the stage that makes it")
        for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
            place = part.relative_to(folder)
            # A leading dot: half-written by a process that was killed, so not an input.
            if part.is_file() and not any(piece.startswith(".") for piece in place.parts):
                digest.update(f"{place}:{file_hash(part)}".encode())
    if "base.json" in inputs:
        base = read_json(folder / "base.json")
        check_window(config, base.get("window", base["original_length"]))
    return digest.hexdigest()


def resolved_yaml(config: Config) -> str:
    """The whole configuration as a Hydra primary config of its own, for ``-cp "$PWD" -cn resolved``."""
    values = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(values, dict)
    head = {
        "defaults": ["_self_", {"override hydra/job_logging": "stdout"}, {"override hydra/hydra_logging": "none"}],
        "hydra": {"run": {"dir": "."}, "output_subdir": None},
    }
    comment = "# Made by the stage compose from conf/ and overrides.yaml; edit those.\n"
    return comment + OmegaConf.to_yaml(OmegaConf.create({**head, **values}))
