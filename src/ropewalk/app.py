"""A script as a Hydra application: a checked configuration, and one-line errors for what a user can put right."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ropewalk.composition import ROOT, check_sweep, checked, culprit, explain, project_overrides, register
from ropewalk.config import Config

EXPECTED = (ValueError, OSError, MemoryError)
"""Errors that a user can put right: reported in one line, without a traceback (ROPEWALK_TRACEBACK=1 shows it)."""


def app(
    name: str,
    task: Callable[[Config], None],
    *,
    sections: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Run ``task`` under the configuration of the command line, as a Hydra app with one-line errors.

    Args:
        sections: sections that must be whole, as in `ropewalk.composition.checked`; by default all.
        overrides: overrides of the app itself, which those of the command line come after.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Lightning sets the level of its packages when it is imported, which may be later.
    for library in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero", "matplotlib"):
        logging.getLogger(library).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    register()
    is_composed = False

    def checked_task(composed: DictConfig) -> None:
        nonlocal is_composed
        is_composed = True
        # A sweep continues with its other jobs when one fails, so its error must get through to Hydra.
        sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
        with nullcontext() if sweeping else _one_line(name):
            config = checked(composed, sections=sections)
            _check_output(config)
            task(config)

    given = [text for text in sys.argv[1:] if not text.startswith("-") and ("=" in text or text.startswith("~"))]
    with _one_line(name, given):
        if not {"-cn", "--config-name"} & set(sys.argv):
            # Not under DVC, whose resolved.yaml is whole.
            flags = [text for text in sys.argv[1:] if text not in given]
            given = project_overrides([*overrides, *given])
            sys.argv[1:] = [*flags, *given]
        try:
            if {"-m", "--multirun"} & set(sys.argv):
                check_sweep(given)
            hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")(checked_task)()
        except (HydraException, OmegaConfBaseException, OSError, MemoryError):
            raise
        except Exception as error:
            # Some wrong overrides make Hydra's code fail with an arbitrary exception.
            if is_composed or not culprit(given):
                raise
            raise ValueError(explain(error, given)) from error


@contextmanager
def _one_line(name: str, overrides: Sequence[str] = ()) -> Iterator[None]:
    """End the process with one line and code 1 on an error that a user can put right."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; run the same command again to resume")
    except (HydraException, OmegaConfBaseException) as error:
        _stop(name, explain(error, overrides), error)
    except EXPECTED as error:
        _stop(name, " ".join(str(error).split()), error)
    except Exception as error:
        # SQLite's message, inside the errors of MLflow and Optuna.
        if "disk is full" not in str(error):
            raise
        _stop(name, "no space left on the disk; free some and run the same command again", error)


def _check_output(config: Config) -> None:
    """Raise ValueError where the jobs of a sweep would write into one folder."""
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN and not Path(config.output).resolve().is_relative_to(job.runtime.output_dir):
        raise ValueError(f"output must be left out in a sweep, whose jobs write below {job.sweep.dir}")


def _stop(name: str, message: str, error: BaseException) -> None:
    if os.environ.get("ROPEWALK_TRACEBACK") == "1":
        raise error
    sys.exit(f"{name}: {message}")


def resolved_yaml(config: Config) -> str:
    """The whole configuration as a self-contained primary config of Hydra, for ``-cp "$PWD" -cn resolved``."""
    values = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(values, dict)
    head = {
        "defaults": ["_self_", {"override hydra/job_logging": "stdout"}, {"override hydra/hydra_logging": "none"}],
        "hydra": {"run": {"dir": "."}, "output_subdir": None},
    }
    comment = "# Made by the stage compose from conf/ and overrides.yaml; edit those.\n"
    return comment + OmegaConf.to_yaml(OmegaConf.create({**head, **values}))
