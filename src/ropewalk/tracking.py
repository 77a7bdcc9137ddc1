"""MLflow: every stage, Hydra job and search is a run on one store. The only module that imports mlflow."""

import fcntl
import logging
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LifecycleStage, LoggedModelInput, LoggedModelStatus, Metric, Run

from ropewalk.config import TrackingConfig
from ropewalk.files import read_json, write_text
from ropewalk.labels import LONGEST_NAME, LONGEST_VALUE, fit, fit_tags, flat

if TYPE_CHECKING:
    from lightning.pytorch.loggers import MLFlowLogger

PARENT = "ROPEWALK_PARENT_RUN"
"""Environment variable with the run that a sweep's jobs are children of (MLFLOW_RUN_ID would override it)."""
_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tells MLflow's pages that an experiment is for training models, and not for the traces of an application."""

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def store_uri(config: TrackingConfig) -> str:
    """The store's address: tracking.uri, else MLFLOW_TRACKING_URI, else SQLite in the current folder's mlflow.db."""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"


def open_experiment(config: TrackingConfig) -> str:
    """Id of the experiment, made where there is none; raises ValueError or OSError where it or the store is gone."""
    uri, name = store_uri(config), config.experiment[:LONGEST_NAME]
    mlflow.set_tracking_uri(uri)
    with _alone_on(uri):
        try:
            known = mlflow.get_experiment_by_name(name)
            if known is None:
                artifacts = Path("mlartifacts").resolve().as_uri() if uri.startswith("sqlite") else None
                return str(mlflow.create_experiment(name, artifact_location=artifacts, tags=_KIND))
        except mlflow.exceptions.MlflowException as error:
            if "disk is full" in str(error):  # which a stage reports as such
                raise
            raise OSError(f"tracking.uri {uri} cannot be used: {error}") from error
    if known.lifecycle_stage != LifecycleStage.ACTIVE:
        raise ValueError(
            f"tracking.experiment {name} was deleted in {uri}; choose another name, or restore it with "
            f"`mlflow experiments restore -x {known.experiment_id}`"
        )
    if not _KIND.keys() & known.tags.keys():
        tag_experiment(known.experiment_id, _KIND)
    return str(known.experiment_id)


def tag_experiment(experiment: str, tags: Mapping[str, str]) -> None:
    """Set tags of the experiment with this id; what MLflow's pages read there may be longer than a run's tag."""
    for key, value in tags.items():
        mlflow.MlflowClient().set_experiment_tag(experiment, key, value)


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
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return git.stdout.strip() or "unknown"


@contextmanager
def stage_run(
    name: str,
    config: TrackingConfig,
    *,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    followed: Mapping[str, str],
    state: Path,
    metrics: Path,
) -> Iterator[None]:
    """One MLflow run around a stage; a stage that resumes after a kill or an error resumes in its old run.

    Inside the block of another run, the run is a child of that run.

    Args:
        tags: tags of the run beside its commit and stage.
        params: parameters of the run, nested by section. A resumed run keeps the values that it has.
        followed: why a parameter has its value, by the names of those that were not given. The names are a tag of the
            run, and the reasons its artifact followed.json.
        state: folder of the stage's resumable state, in which the run's id is kept.
        metrics: JSON file with the metrics that the stage writes, if any.
    """
    experiment = open_experiment(config)
    run_id_file = state / "mlflow_run_id"
    run_id = run_id_file.read_text() if run_id_file.is_file() else None
    if run_id and not _is_active(run_id):
        run_id = None
    all_tags = fit_tags({"commit": commit_of(), "stage": name, **tags})
    if followed:
        all_tags |= fit_tags({"followed": ", ".join(followed)})
    outer_run = mlflow.active_run()  # that of stages which run one after another in this process
    if parent := outer_run.info.run_id if outer_run else os.environ.get(PARENT):
        all_tags["mlflow.parentRunId"] = parent
    with mlflow.start_run(
        run_id=run_id,
        experiment_id=None if run_id else experiment,
        run_name=name,
        tags=all_tags,
        nested=outer_run is not None,
        # Sampled every ten seconds, so that a stage of a second logs none.
        log_system_metrics=True,
    ) as run:
        write_text(run_id_file, run.info.run_id)
        # A run that was killed may lack some; MLflow refuses another value for one that is there.
        log_params({key: value for key, value in flat(params).items() if fit(key) not in run.data.params})
        if followed:
            mlflow.log_dict(dict(followed), "followed.json")
        start = time.time()
        yield
        numbers = flat(read_json(metrics)) if metrics.is_file() else {}
        numbers["seconds"] = time.time() - start
        log_metrics({key: value for key, value in numbers.items() if isinstance(value, int | float)})


@contextmanager
def child_run(name: str, *, tags: Mapping[str, str]) -> Iterator[None]:
    """A run below the active run, in the same experiment; inside the block it is the active run."""
    experiment = _active().info.experiment_id
    with mlflow.start_run(run_name=name[:LONGEST_NAME], nested=True, experiment_id=experiment, tags=fit_tags(tags)):
        yield


def _active() -> Run:
    run = mlflow.active_run()
    assert run is not None
    return run


def active_run() -> str:
    """Id of the active run."""
    return str(_active().info.run_id)


def evaluated_runs(experiment: str) -> list[str]:
    """Ids of the runs of the latest evaluation in this experiment, one per model and method; empty for none."""
    client = mlflow.MlflowClient()
    runs = client.search_runs([experiment], "params.method != ''", order_by=["attributes.start_time DESC"])
    parents = [run.data.tags.get("mlflow.parentRunId") for run in runs]
    return [run.info.run_id for run, parent in zip(runs, parents, strict=True) if parent == parents[0]][::-1]


def run_tags(*names: str) -> dict[str, str]:
    """Values of these tags of the active run."""
    return {name: _active().data.tags.get(name, "") for name in names}


def _is_active(run_id: str) -> bool:
    """Whether the store holds the run and it was not deleted."""
    try:
        return bool(mlflow.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
    except mlflow.exceptions.MlflowException:
        return False


def log_params(params: Mapping[str, Any]) -> None:
    """Parameters of the active run, as text that is cut where it is long."""
    mlflow.log_params({fit(key): str(value)[:LONGEST_VALUE] for key, value in params.items()})


def log_metrics(metrics: Mapping[str, float]) -> None:
    """Metrics of the active run."""
    mlflow.log_metrics({fit(key): float(value) for key, value in metrics.items()})


def log_series(name: str, points: Sequence[tuple[int, float]], *, model_id: str | None = None) -> None:
    """A metric's (step, value) points in the active run, also as a metric of the logged model ``model_id``."""
    now, key = int(time.time() * 1000), fit(name)
    client = mlflow.MlflowClient()
    for first in range(0, len(points), 900):
        batch = [Metric(key, float(value), now, step, model_id) for step, value in points[first : first + 900]]
        client.log_batch(_active().info.run_id, metrics=batch)


def log_file(path: Path) -> None:
    """Log a file or folder as artifact of the active run."""
    if path.is_dir():
        mlflow.log_artifacts(str(path), artifact_path=path.name)
    else:
        mlflow.log_artifact(str(path))


def log_figure(figure: Any, name: str) -> None:
    """A matplotlib figure as artifact ``name`` of the active run."""
    mlflow.log_figure(figure, name)


def register_model(folder: Path, name: str) -> str:
    """Add a transformers checkpoint to the model registry as the next version of ``name``, from the active run.

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
        # Otherwise MLflow asks the hub for a card.
        model_card=ModelCard.load(folder / "README.md"),
        registered_model_name=name,
        # Given here, because MLflow would otherwise load the model in another process to find them out.
        pip_requirements=[f"{package}=={version(package)}" for package in ("torch", "transformers")],
    )
    return f"models:/{name}/{logged.registered_model_version}"


def log_dataset(
    name: str, *, source: str, card: Mapping[str, Any], splits: Sequence[str] = ("train", "search", "test")
) -> None:
    """Log the corpus of the active run as MLflow datasets: each split with its counts, known by its tokens' hash."""
    for split in splits:
        profile = {key: card[split][key] for key in ("documents", "tokens", "longest", "hash")}
        dataset = MetaDataset(  # type: ignore[abstract]
            CodeDatasetSource({"corpus": source}), name=f"{name} {split}", digest=card[split]["hash"][:16]
        )
        mlflow.log_input(dataset, context=split, tags={key: str(value) for key, value in profile.items()})


def link_model(name: str, weights: str) -> str:
    """Link the active run to the logged model ``name`` with these weights, which is made where there is none.

    Returns:
        The model's id.
    """
    client, run = mlflow.MlflowClient(), _active().info
    known = re.sub(r"[^\w-]+", "-", name)[:100]
    params = {"weights_sha256": weights[:LONGEST_VALUE]}
    condition = f"name = '{known}' AND params.weights_sha256 = '{params['weights_sha256']}'"
    models = client.search_logged_models([run.experiment_id], filter_string=condition, max_results=1)
    model = models[0] if models else None
    if model is None:
        model = client.create_logged_model(run.experiment_id, name=known, source_run_id=run.run_id, params=params)
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    # The fluent function links models on Databricks alone.
    client.log_inputs(run.run_id, models=[LoggedModelInput(model.model_id)])
    return str(model.model_id)


def lightning_logger() -> "MLFlowLogger":
    """Lightning's logger on the active run."""
    # Late, because Lightning takes seconds to import and only fine-tuning needs it.
    from lightning.pytorch.loggers import MLFlowLogger

    return MLFlowLogger(tracking_uri=mlflow.get_tracking_uri(), run_id=_active().info.run_id, log_model=False)


def begin_run(experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """Begin a run outside of any block, in the experiment with this id; returns the run's id."""
    return str(mlflow.MlflowClient().create_run(experiment, run_name=name, tags=dict(tags)).info.run_id)


def end_run(run_id: str, status: str) -> None:
    """End a run of `begin_run`, as "FINISHED" or "FAILED"."""
    mlflow.MlflowClient().set_terminated(run_id, status)
