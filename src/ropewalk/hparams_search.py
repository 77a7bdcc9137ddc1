"""An Optuna study over the hyperparameters of the first fine-tuning, with the values that hparams_search.space names.

The study is kept in the output folder and can be continued. A trial is a run of pipelines/finetune_first.py, and its
value the perplexity of documents of the search split at the target.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import optuna
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from optuna.trial import FrozenTrial, Trial, TrialState

from ropewalk import tracking
from ropewalk.app import resolved_yaml
from ropewalk.composition import ROOT, section
from ropewalk.config import Config
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.perplexity import DocumentSet, document_losses
from ropewalk.files import write_text
from ropewalk.labels import flat
from ropewalk.models.base import load_model
from ropewalk.models.factors import SearchedFactors
from ropewalk.stage import Stage

optuna.logging.set_verbosity(optuna.logging.WARNING)


def suggest(trial: Trial, space: Mapping[str, str]) -> list[str]:
    """Overrides with a value for each key of the space, in Hydra's grammar.

    Raises:
        ValueError: a key's values are not an interval, a choice or a range.
    """
    parser, overrides = OverridesParser.create(), []
    for key, values in space.items():
        [override] = parser.parse_overrides([f"{key}={values}"])
        sweep = override.value()
        if isinstance(sweep, IntervalSweep):
            ask: Any = trial.suggest_int if isinstance(sweep.start, int) else trial.suggest_float
            overrides.append(f"{key}={ask(key, sweep.start, sweep.end, log='log' in sweep.tags)}")
        elif override.is_discrete_sweep():
            overrides.append(f"{key}={trial.suggest_categorical(key, list(override.sweep_string_iterator()))}")
        else:
            raise ValueError(f"hparams_search.space: {key} must be an interval, a choice or a range, found {values}")
    return overrides


def check_space(config: Config) -> None:
    """Raise ValueError where the space is empty or names a key that is not there."""
    if not config.hparams_search.space:
        raise ValueError("hparams_search.space is empty; give hparams_search=finetune, or keys of your own")
    known = flat(section(config, *(item.name for item in fields(config))))
    if unknown := sorted(set(config.hparams_search.space) - known.keys()):
        raise ValueError(f"hparams_search.space: {', '.join(unknown)} is not a key of the configuration")


def open_study(stage: Stage) -> optuna.Study:
    """The study of this space, configuration and inputs in the output folder, made where there is none."""
    settings = stage.config.hparams_search
    study_settings = [settings.space, settings.documents, stage.values("finetune", "model"), stage.config.seed]
    name = hashlib.sha256(json.dumps([*study_settings, stage.inputs_hash], sort_keys=True).encode()).hexdigest()[:16]
    stage.output.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        storage=f"sqlite:///{(stage.output / 'study.db').resolve()}", study_name=name, load_if_exists=True
    )


def search_hparams(stage: Stage) -> FrozenTrial:
    """Run the trials that are missing, and return the best of all.

    Raises:
        ValueError: the space is wrong, or no trial succeeded.
    """
    check_space(stage.config)
    study = open_study(stage)
    # In a folder without subfolders, which Hydra would take for config groups.
    write_text(stage.output / "trials" / "resolved.yaml", resolved_yaml(stage.config))
    while (number := len(study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL)))) < _trials(stage):
        # A new sampler for each trial, so that a study that was interrupted continues as if it had not been.
        study.sampler = optuna.samplers.TPESampler(seed=stage.config.seed + number)
        killed = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        trial = Trial(study, killed[0]._trial_id) if killed else study.ask()
        overrides = suggest(trial, stage.config.hparams_search.space)
        print(f"trial {trial.number + 1} of {_trials(stage)}: {' '.join(overrides)}", flush=True)
        folder = stage.output / "trials" / f"{study.study_name}-{trial.number}"
        try:
            with tracking.child_run(f"trial {trial.number}", tags=tracking.run_tags("stage", "commit", "model", "way")):
                tracking.log_params(dict(override.split("=", 1) for override in overrides))
                _train(stage, overrides, folder)
                perplexity = _perplexity(stage, folder / "checkpoints" / "finetune_first")
                tracking.log_metrics({"perplexity_at_target": perplexity})
            study.tell(trial, perplexity)
            print(f"perplexity {perplexity:.4f}", flush=True)
        except subprocess.CalledProcessError:
            study.tell(trial, state=TrialState.FAIL)
        shutil.rmtree(folder, ignore_errors=True)
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        raise ValueError("no trial succeeded; the lines above say why")
    return study.best_trial


def _trials(stage: Stage) -> int:
    return stage.config.hparams_search.trials


def _train(stage: Stage, overrides: list[str], folder: Path) -> None:
    """Train under the overrides in a process of its own, whose MLflow run is a child of the active one."""
    script, configuration = ROOT / "pipelines" / "finetune_first.py", stage.output / "trials"
    given = ("-cp", str(configuration.resolve()), "-cn", "resolved", *overrides)
    command = (sys.executable, str(script), *given, f"output={folder}", f"work={folder / 'work'}")
    subprocess.run(command, env={**os.environ, tracking.PARENT: tracking.active_run()}, check=True)


def _perplexity(stage: Stage, checkpoint: Path) -> float:
    """Perplexity of documents of the search split at the target, under the factors of the first search."""
    scaling = SearchedFactors.read(stage.inputs / "factors" / "first.json").scaling
    store, length = TokenStore(stage.inputs / "tokens" / "search"), scaling.target_length
    documents = DocumentSet.of("search", store, length=length, documents=stage.config.hparams_search.documents)
    model = load_model(str(checkpoint), **stage.config.model.loading)
    perplexity = document_losses(model, scaling, documents, [length])[length].perplexity
    del model
    torch.cuda.empty_cache()
    return perplexity
