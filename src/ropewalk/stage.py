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
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ropewalk.config import Config, checked, explain, register, section
from ropewalk.files import file_hash, write_json

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, OSError)
"""What a user can put right: reported in one line, without a traceback (ROPEWALK_TRACEBACK=1 shows it)."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of one stage."""

    name: str
    config: Config
    sections: tuple[str, ...]
    inputs_hash: str

    @property
    def output(self) -> Path:
        return Path(self.config.output)

    @property
    def inputs(self) -> Path:
        """Folder with the results of earlier stages."""
        return Path(self.config.inputs)

    @property
    def state(self) -> Path:
        """Folder for resumable state: one per configuration and inputs, so that no other run's is taken."""
        values = {**section(self.config, *self.sections), "seed": self.config.seed, "inputs": self.inputs_hash}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
        folder = Path(self.config.work) / self.name / digest
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def config_hash(self) -> str:
        values = {**section(self.config, *self.sections), "seed": self.config.seed}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def values(self, *names: str) -> dict[str, Any]:
        """Plain values of the named sections, for records."""
        return section(self.config, *names)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        write_json(self.output / "metrics" / f"{self.name}.json", metrics)


def run(name: str, work: Callable[[Stage], None], *, sections: Sequence[str], inputs: Sequence[str] = ()) -> None:
    """Run ``work`` as the Hydra app ``name``; exits with a one-line message on bad input.

    Args:
        sections: the sections of the configuration that the stage reads.
        inputs: files below ``config.inputs`` that the stage reads; they must be there, and their hash is
            part of the key of its resumable state.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    register()

    def task(composed: DictConfig) -> None:
        from ropewalk import tracking

        config = checked(composed)
        stage = Stage(name, config, tuple(sections), _hash_inputs(Path(config.inputs), inputs))
        with tracking.stage_run(stage):
            work(stage)
        # Done: the results are whole, so a forced run starts afresh.
        shutil.rmtree(stage.state)

    try:
        hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")(task)()
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; run the same command again to go on")
    except (HydraException, OmegaConfBaseException) as error:
        _stop(name, explain(error), error)
    except EXPECTED as error:
        _stop(name, " ".join(str(error).split()), error)


def _stop(name: str, message: str, error: BaseException) -> None:
    if os.environ.get("ROPEWALK_TRACEBACK") == "1":
        raise error
    sys.exit(f"{name}: {message}")


def _hash_inputs(folder: Path, inputs: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in inputs:
        path = folder / name
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there; run `dvc repro` up to the stage that makes it")
        for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if part.is_file():
                digest.update(f"{part.relative_to(folder)}:{file_hash(part)}".encode())
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
