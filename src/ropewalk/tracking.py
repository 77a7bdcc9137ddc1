"""MLflow: every stage, Hydra job and search is a run on one store. The only module that imports mlflow."""

import atexit
import fcntl
import logging
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
from hydra.experimental.callback import Callback
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LoggedModelInput, LoggedModelStatus, Metric, RunStatus
from omegaconf import DictConfig

from ropewalk.composition import section
from ropewalk.config import TrackingConfig
from ropewalk.files import read_json, write_text

if TYPE_CHECKING:
    from lightning.pytorch.loggers import MLFlowLogger

    from ropewalk.stage import Stage

PARENT = "ROPEWALK_PARENT_RUN"
"""Environment variable with the run that a sweep's jobs are children of (MLFLOW_RUN_ID would override it)."""
_LONGEST_VALUE = 500
_POINT = ("lambda_", "n_hat", "attention_factor")
"""What the columns of a point of a search begin with."""

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def store_uri(config: TrackingConfig) -> str:
    """tracking.uri, else MLFLOW_TRACKING_URI, else SQLite in the current folder's mlflow.db."""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"


def _experiment(config: TrackingConfig) -> str:
    uri = store_uri(config)
    mlflow.set_tracking_uri(uri)
    with _alone_on(uri):
        found = mlflow.get_experiment_by_name(config.experiment)
        if found is not None:
            return str(found.experiment_id)
        artifacts = Path("mlartifacts").resolve().as_uri() if uri.startswith("sqlite") else None
        return str(mlflow.create_experiment(config.experiment, artifact_location=artifacts))


@contextmanager
def _alone_on(uri: str) -> Iterator[None]:
    """Keep other processes from making the tables of a SQLite store at the same time."""
    path = uri.removeprefix("sqlite:///")
    if path == uri:
        yield
        return
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def commit_of(folder: str | Path = ".") -> str:
    """The git commit that ``folder`` is at, or "unknown"."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


@contextmanager
def stage_run(stage: "Stage") -> Iterator[None]:
    """One MLflow run around a stage; a stage that goes on after a kill goes on in its old run."""
    experiment = _experiment(stage.config.tracking)
    remembered = stage.state / "mlflow_run_id"
    run_id = remembered.read_text() if remembered.is_file() else None
    if run_id and not _exists(run_id):
        run_id = None
    tags = {"commit": commit_of(), "stage": stage.name, "config_hash": stage.config_hash}
    if parent := os.environ.get(PARENT):
        tags["mlflow.parentRunId"] = parent
    with mlflow.start_run(
        run_id=run_id, experiment_id=None if run_id else experiment, run_name=stage.name, tags=tags
    ) as run:
        write_text(remembered, run.info.run_id)
        if run_id is None:
            values = {**section(stage.config, *stage.sections), "seed": stage.config.seed}
            mlflow.log_params({key: str(value)[:_LONGEST_VALUE] for key, value in _flat(values).items()})
        start = time.time()
        yield
        metrics = stage.output / "metrics" / f"{stage.name}.json"
        numbers = _flat(read_json(metrics)) if metrics.is_file() else {}
        numbers["seconds"] = time.time() - start
        mlflow.log_metrics({key: float(value) for key, value in numbers.items() if isinstance(value, int | float)})


def _exists(run_id: str) -> bool:
    try:
        mlflow.get_run(run_id)
    except mlflow.exceptions.MlflowException:
        return False
    return True


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat


def log_series(name: str, points: Sequence[tuple[int, float]], *, model_id: str | None = None) -> None:
    """A metric's values by step, in the active run; of a logged model where it is said which."""
    run = mlflow.active_run()
    assert run is not None
    now = int(time.time() * 1000)
    client = mlflow.MlflowClient()
    for first in range(0, len(points), 900):
        batch = [Metric(name, float(value), now, step, model_id) for step, value in points[first : first + 900]]
        client.log_batch(run.info.run_id, metrics=batch)


def log_file(path: Path) -> None:
    """A file or folder as artifact of the active run."""
    if path.is_dir():
        mlflow.log_artifacts(str(path), artifact_path=path.name)
    else:
        mlflow.log_artifact(str(path))


def register_model(folder: Path, name: str) -> str:
    """A transformers checkpoint as the next version of ``name`` in the model registry, in the active run.

    Returns:
        Its address for ``mlflow.transformers.load_model`` and ``mlflow.pyfunc.load_model``.
    """
    # Late, because transformers takes seconds to import and only a push needs it.
    import transformers
    from huggingface_hub import ModelCard

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    logged = mlflow.transformers.log_model(
        transformers_model={"model": model, "tokenizer": tokenizer},
        name="model",
        task="text-generation",
        # Else MLflow asks the hub for one.
        model_card=ModelCard.load(folder / "README.md"),
        registered_model_name=name,
        # Said here, since MLflow would load the model in a process of its own to find them.
        pip_requirements=[f"{package}=={version(package)}" for package in ("torch", "transformers")],
    )
    return f"models:/{name}/{logged.registered_model_version}"


def log_dataset(
    name: str, *, source: str, card: Mapping[str, Any], splits: Sequence[str] = ("train", "search", "test")
) -> None:
    """The corpus of the active run as MLflow datasets: each split with its counts, known by its tokens' hash."""
    for split in splits:
        profile = {key: card[split][key] for key in ("documents", "tokens", "longest", "hash")}
        dataset = MetaDataset(  # type: ignore[abstract]
            CodeDatasetSource({"corpus": source}), name=f"{name} {split}", digest=card[split]["hash"][:16]
        )
        mlflow.log_input(dataset, context=split, tags={key: str(value) for key, value in profile.items()})


def log_comparison(
    rows: Sequence[Mapping[str, Any]],
    passkeys: Sequence[Mapping[str, Any]],
    *,
    name: str,
    weights: Mapping[str, str],
    card: Mapping[str, Any],
) -> None:
    """A child run per model and method, so that several picked in the UI share a chart for each of their metrics.

    A metric's step is the input length in tokens. ``perplexity`` is on all test documents, ``perplexity_long`` on the
    longest ones, which do not compare; both are the method's best case. Method, model and lengths are parameters, the
    test documents an MLflow dataset and the weights a logged model, the same one in every run that reads them.

    Args:
        rows: of ``plots/perplexity.csv``.
        passkeys: of ``plots/passkey.csv``.
        name: of the base model.
        weights: hash of each model's weights.
        card: the data card that prepare wrote.
    """
    parent = mlflow.active_run()
    assert parent is not None
    experiment = parent.info.experiment_id
    pairs = dict.fromkeys((str(row["model"]), str(row["method"])) for row in (*rows, *passkeys))
    for model, method in pairs:
        own = [row for row in rows if (row["model"], row["method"]) == (model, method)]
        keys = [row for row in passkeys if (row["model"], row["method"]) == (model, method)]
        lengths = sorted({int(row["length"]) for row in (*own, *keys)})
        tags = {"stage": parent.data.tags.get("stage", ""), "commit": parent.data.tags.get("commit", "")}
        with mlflow.start_run(run_name=f"{model} {method}", nested=True, experiment_id=experiment, tags=tags) as run:
            protocols = dict.fromkeys(str(row["protocol"]) for row in own)
            mlflow.log_params(
                {
                    "model": model,
                    "method": method,
                    "lengths": ", ".join(map(str, lengths)),
                    "shortest_length": lengths[0],
                    "longest_length": lengths[-1],
                    "protocol": "; ".join(protocols)[:_LONGEST_VALUE],
                }
            )
            if "test" in card:
                log_dataset(card["corpus"], source=card["corpus"], card=card, splits=("test",))
            model_id = _logged_model(f"{name}-{model}", weights.get(model, ""), experiment, run.info.run_id)
            # The fluent function links models on Databricks alone.
            mlflow.MlflowClient().log_inputs(run.info.run_id, models=[LoggedModelInput(model_id)])
            for metric, series in _by_length(own, keys).items():
                log_series(metric, series, model_id=model_id)


def _by_length(
    rows: Sequence[Mapping[str, Any]], passkeys: Sequence[Mapping[str, Any]]
) -> dict[str, list[tuple[int, float]]]:
    """Finite values by input length, under the name of their metric."""
    best: dict[str, dict[int, float]] = {}
    for row in rows:
        found = best.setdefault("perplexity" if row["document_set"] == "all" else "perplexity_long", {})
        length, value = int(row["length"]), float(row["perplexity"])
        if math.isfinite(value):
            found[length] = min(value, found.get(length, math.inf))
    for length in {int(row["length"]) for row in passkeys}:
        own = [row for row in passkeys if int(row["length"]) == length]
        share = sum(int(row["correct"]) for row in own) / sum(int(row["trials"]) for row in own)
        best.setdefault("passkey_accuracy", {})[length] = share
    return {metric: sorted(values.items()) for metric, values in best.items()}


def _logged_model(name: str, weights: str, experiment: str, run_id: str) -> str:
    """The id of the logged model that stands for these weights in the experiment, made where there is none."""
    client = mlflow.MlflowClient()
    known = re.sub(r"[^\w-]+", "-", name)[:100]
    condition = f"name = '{known}' AND params.weights_sha256 = '{weights[:_LONGEST_VALUE]}'"
    if found := client.search_logged_models([experiment], filter_string=condition, max_results=1):
        return str(found[0].model_id)
    params = {"weights_sha256": weights[:_LONGEST_VALUE]}
    made = client.create_logged_model(experiment, name=known, source_run_id=run_id, params=params)
    client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
    return str(made.model_id)


def log_child(
    name: str,
    *,
    tags: dict[str, str],
    metrics: dict[str, float],
    series: Mapping[str, Sequence[tuple[int, float]]] | None = None,
) -> None:
    """A finished run below the active one, in the same experiment; ``series`` are metrics with values by step."""
    parent = mlflow.active_run()
    assert parent is not None
    with mlflow.start_run(run_name=name, nested=True, experiment_id=parent.info.experiment_id, tags=tags):
        mlflow.log_metrics(metrics)
        for metric, points in (series or {}).items():
            log_series(metric, points)


def log_search(name: str, rows: Sequence[dict[str, Any]], table: Path, *, best: int = 10) -> None:
    """A search in the active run: best loss by tokens paid and by generation, a table of all, the best as child runs.

    With pictures of its convergence and of the best factors of each length. The step of ``best_loss_by_tokens`` is
    the count of forward tokens in thousands, that of a child run's ``rescale_factor`` the pair.
    """
    for length in dict.fromkeys(row["length"] for row in rows):
        paid = {
            row["tokens"] // 1000: row["best_so_far"]
            for row in rows
            if row["length"] == length and row["best_so_far"] is not None
        }
        log_series(f"best_loss_by_tokens_{length}", list(paid.items()))
        for phase in ("gradient", "evolution"):
            own = [row for row in rows if row["length"] == length and row["phase"] == phase and row["best"] is not None]
            steps = {(row["generation"] if phase == "evolution" else row["trial"]): row["best"] for row in own}
            log_series(f"{phase}_best_loss_{length}", list(steps.items()))
        trials = [r for r in rows if r["length"] == length and r["phase"] == "evolution" and r["loss"] is not None]
        generations: dict[int, list[float]] = {}
        for row in trials:
            generations.setdefault(row["generation"], []).append(row["loss"])
        log_series(
            f"evolution_mean_loss_{length}", [(number, sum(own) / len(own)) for number, own in generations.items()]
        )
        whole = [r for r in rows if r["length"] == length and r["phase"] != "gradient" and r["loss"] is not None]
        # A trial of a point that was known before is that point once more.
        points = {tuple(row[key] for key in row if key.startswith(_POINT)): row for row in reversed(whole)}
        for rank, row in enumerate(sorted(points.values(), key=lambda row: row["loss"])[:best], start=1):
            tags = {key: str(row[key]) for key in ("length", "phase", "trial", "generation")}
            numbers = {key: row[key] for key in ("loss", "n_hat", "attention_factor")}
            profile = [(int(key.removeprefix("lambda_")), row[key]) for key in row if key.startswith("lambda_")]
            log_child(f"{name} {length} best {rank}", tags=tags, metrics=numbers, series={"rescale_factor": profile})
    log_file(table)
    # Late, because matplotlib takes a while to import.
    from ropewalk.report.plots import search, searched_factors

    mlflow.log_figure(search({name: rows}), "convergence.png")
    mlflow.log_figure(searched_factors(rows), "factors.png")


def lightning_logger() -> "MLFlowLogger":
    """Lightning's logger on the active run."""
    # Late, because Lightning takes seconds to import and only fine-tuning needs it.
    from lightning.pytorch.loggers import MLFlowLogger

    run = mlflow.active_run()
    assert run is not None
    return MLFlowLogger(tracking_uri=mlflow.get_tracking_uri(), run_id=run.info.run_id, log_model=False)


class SweepParent(Callback):
    """Hydra callback: one MLflow run around a ``-m`` sweep, whose jobs become its children."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        tracking = TrackingConfig(**{key: config.tracking[key] for key in ("experiment", "uri")})
        experiment = _experiment(tracking)
        overrides = " ".join(map(str, config.hydra.overrides.task)) or "no overrides"
        tags = {"commit": commit_of(), "overrides": overrides[:_LONGEST_VALUE]}
        run = mlflow.MlflowClient().create_run(experiment, run_name=f"{Path(sys.argv[0]).stem} sweep", tags=tags)
        os.environ[PARENT] = run.info.run_id
        # Hydra calls on_multirun_end only where every job succeeded.
        atexit.register(_end_sweep, run.info.run_id, RunStatus.FAILED)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if run_id := os.environ.pop(PARENT, None):
            atexit.unregister(_end_sweep)
            _end_sweep(run_id, RunStatus.FINISHED)


def _end_sweep(run_id: str, status: int) -> None:
    mlflow.MlflowClient().set_terminated(run_id, RunStatus.to_string(status))
