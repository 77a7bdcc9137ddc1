"""The run that the jobs of a sweep are children of."""

import atexit
import os
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ropewalk.config import TrackingConfig
from ropewalk.labels import LONGEST_VALUE
from ropewalk.tracking import PARENT, begin_run, commit_of, end_run, open_experiment


class SweepParent(Callback):
    """Hydra callback: one MLflow run around a ``-m`` sweep, whose jobs become its children."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        tracking = TrackingConfig(**{key: config.tracking[key] for key in ("experiment", "uri")})
        experiment = open_experiment(tracking)
        overrides = " ".join(map(str, config.hydra.overrides.task)) or "no overrides"
        tags = {"commit": commit_of(), "overrides": overrides[:LONGEST_VALUE]}
        run_id = begin_run(experiment, f"{Path(sys.argv[0]).stem} sweep", tags)
        os.environ[PARENT] = run_id
        # Hydra calls on_multirun_end only where every job succeeded.
        atexit.register(end_run, run_id, "FAILED")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if run_id := os.environ.pop(PARENT, None):
            atexit.unregister(end_run)
            end_run(run_id, "FINISHED")
