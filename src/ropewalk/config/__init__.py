"""The schema of conf/: every section as a dataclass, with a key's default, what it allows and what it means."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from ropewalk.config.corpus import CorpusConfig, SourceConfig
from ropewalk.config.evaluate import BenchmarksConfig, EvaluateConfig, RetrievalConfig, RopeConfig
from ropewalk.config.finetune import (
    PRECISIONS,
    BaselinesConfig,
    FinetuneConfig,
    FinetuneStepConfig,
    LoraConfig,
    ParallelConfig,
)
from ropewalk.config.keys import at_least, choice, positive, share, where
from ropewalk.config.search import (
    EXTENT,
    PLACEMENT,
    ExtensionConfig,
    FitnessConfig,
    RaceConfig,
    SearchConfig,
    SearchTargetConfig,
)

__all__ = [
    "EXTENT", "PLACEMENT", "BaselinesConfig", "BenchmarksConfig", "Config", "CorpusConfig",
    "DoctorConfig", "EvaluateConfig", "ExportConfig", "ExtensionConfig", "FinetuneConfig", "FinetuneStepConfig",
    "FitnessConfig", "LoraConfig", "ModelConfig", "ParallelConfig", "PlanConfig", "PushConfig",
    "RaceConfig", "RetrievalConfig", "RopeConfig", "SearchConfig", "SearchTargetConfig",
    "ShowConfig", "SourceConfig", "TrackingConfig", "WalkerConfig"
]  # fmt: skip


@dataclass
class ModelConfig:
    """The base model whose context window is extended."""

    name: str = MISSING
    path: str = MISSING
    """Local folder of a transformers checkpoint, a hub id, or a GGUF file."""
    original_length: int | None = at_least(1, None)
    """Context window in tokens; by default what the checkpoint says."""
    start: str = choice(("checkpoint", "plain"), "checkpoint")
    """RoPE scaling to start from: the checkpoint's own, with the window that it reaches, or plain RoPE."""
    dtype: str = choice(("float32", "bfloat16", "float16"), "float32")
    """Data type in which the model is loaded, searched and evaluated; follows from the device. Weights are trained in
    that of finetune.precision."""
    attention: str = choice(
        ("auto", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "eager"), "auto"
    )
    """transformers' attention implementation. auto: sdpa where the model's class supports it, which is not so with soft
    caps and sinks; otherwise flex_attention on a GPU and eager elsewhere."""
    trust_remote_code: bool = False
    """Whether to run the code that comes with a checkpoint whose architecture transformers does not have."""
    keep_sliding_window: bool = False
    """Whether to keep a checkpoint's sliding-window attention; by default it is turned off, as the paper does for
    Mistral."""

    @property
    def loading(self) -> dict[str, Any]:
        """Keyword arguments of `ropewalk.models.base.load_model`."""
        kept = {"attention": self.attention, "keep_sliding_window": self.keep_sliding_window}
        return {"dtype": self.dtype, **kept, **self.trust}

    @property
    def trust(self) -> dict[str, bool]:
        """Keyword arguments of `load_tokenizer` and `window_before`."""
        return {"trust_remote_code": self.trust_remote_code}


@dataclass
class ExportConfig:
    """The exported checkpoint."""

    short_factor: str = choice(("same", "recovered"), "same")
    """Factors for short inputs. same: one factor set for every length, safe in any software. recovered: those of the
    stage recover, with which most software garbles text when generation crosses the original window."""
    dtype: str = choice(("auto", "float32", "bfloat16", "float16"), "auto")
    """Data type of the exported weights; auto is that of the checkpoint that model.path names, whatever model.dtype
    computed in."""
    gguf: str | None = choice(("float16", "float32"), None)
    """Data type of model.gguf for llama.cpp; null to write none. Needs the extra gguf."""
    license: str | None = None
    """Licence of the base model for the card; by default what the card in its folder says."""


@dataclass
class ShowConfig:
    """What pipelines/show.py shows: a table of factors, or by default the scaling of model.path."""

    table: str | None = None
    """CSV file of factors, with one row, or one row per layer."""
    original_length: int | None = at_least(1, None)
    """Original context window of the table's factors, in tokens; needed with a table."""
    target_length: int | None = at_least(1, None)
    """Target length of the table's factors, in tokens; needed with a table."""
    rope_theta: float = positive(10_000.0)
    """Base of the rotary frequencies of the table's model."""


@dataclass
class DoctorConfig:
    """What pipelines/doctor.py examines: whether a runtime applies the scaling of a checkpoint."""

    model: str = "results/model"
    """Exported folder, any other checkpoint or hub id, or GGUF file."""
    reference: str | None = None
    """Checkpoint that states the right scaling, where the model may have lost it; by default the model itself, or the
    folder of a GGUF file."""
    runtime: str | None = choice(("transformers", "llama_cpp"), None)
    """The Python package that reads the model; by default those that are installed and can read it."""
    text: str | None = None
    """Text file to read; by default Python's standard library."""
    length: int | None = at_least(2, None)
    """Number of tokens to read; by default the window that the scaling reaches."""


@dataclass
class PushConfig:
    """Where pipelines/push.py publishes an exported model; at least one of folder, hub and mlflow."""

    model: str = "results/model"
    """Folder of the exported model."""
    folder: str | None = None
    """Local folder to write to: a new or empty one, or that of an earlier push."""
    hub: str | None = None
    """Hub repository as owner/name; the token is read from HF_TOKEN only."""
    mlflow: str | None = where(
        lambda name: bool(name.strip(" .")) and not set(name) & set("/:"), "must be a name without / and :", None
    )
    """Name in MLflow's model registry."""
    private: bool = True
    """Whether a new hub repository is private."""


@dataclass
class WalkerConfig:
    """Training of the embedded base model (`make walker`)."""

    cycles: list[int] = where(
        lambda cycles: min(cycles, default=0) >= 1, "must be numbers of steps from 1", [12_000, 24_000]
    )
    """Number of steps of each cosine cycle of the learning rate."""
    learning_rates: list[float] = positive([1e-3, 3e-3])
    """Peak learning rate of each cycle, reached after 2 % of its steps. Attention learns to look back at the first
    rate, and does not at 3e-3."""
    batch_size: int = at_least(1, 16)
    """Number of rows of 256 tokens in a step."""
    weight_decay: float = at_least(0, 0.1)
    practice_steps: int = 3000
    """Pace of the practice rows, from which attention learns to look back (`ropewalk.corpus.practice`)."""
    recall_share: float = share(0.4)
    """Share of the later rows that are recall documents."""
    precision: str = choice(PRECISIONS, "auto")
    """Lightning's name of the precision, or auto: bf16-mixed where bf16 is native, else 32-true."""


@dataclass
class PlanConfig:
    """The device that pipelines/plan.py plans for; the section parallel says how many there are."""

    name: str = MISSING
    tflops: float | None = positive(None)
    """Published dense bf16 TFLOPS of a device; by default measured on this machine's CPU."""
    float32_tflops: float | None = positive(None)
    """Published float32 TFLOPS, without TF32, which torch does not use by default."""
    memory_gib: float | None = positive(None)
    """Memory of a device in GiB; by default this machine's."""
    efficiency: float = positive(0.4)
    """Share of tflops that is reached."""
    reserve: float = share(0.05)
    """Share of the memory that is left to what is not counted: the libraries, and gaps between blocks."""


@dataclass
class HparamsSearchConfig:
    """Search for the hyperparameters of the first fine-tuning (pipelines/sweep.py)."""

    name: str = "none"
    trials: int = at_least(1, 20)
    """Number of trials, those of an earlier run of the same study included."""
    documents: int = at_least(1, 8)
    """Number of documents of the search split whose perplexity at the target is compared."""
    space: dict[str, str] = field(default_factory=dict)
    """Values of each key, as Hydra writes a sweep: int(interval(1, 4)), tag(log, interval(1e-6, 1e-3)), choice(4)."""


@dataclass
class TrackingConfig:
    """MLflow's experiment and store."""

    experiment: str = where(lambda name: bool(name.strip()), "must be a name", "ropewalk")
    """Name of the experiment."""
    uri: str | None = None
    """Address of the MLflow store; by default SQLite in the project's mlflow.db."""


@dataclass
class Config:
    """The whole configuration."""

    seed: int = at_least(0, 0)
    output: str = MISSING
    """Folder that a stage writes to."""
    inputs: str = "results"
    """Folder that a stage reads the results of earlier stages from."""
    work: str = "work"
    """Folder for resumable state; never a result."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    extension: ExtensionConfig = field(default_factory=ExtensionConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    baselines: BaselinesConfig = field(default_factory=BaselinesConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    rope: RopeConfig = field(default_factory=RopeConfig)
    walker: WalkerConfig = field(default_factory=WalkerConfig)
    show: ShowConfig = field(default_factory=ShowConfig)
    push: PushConfig = field(default_factory=PushConfig)
    doctor: DoctorConfig = field(default_factory=DoctorConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    hparams_search: HparamsSearchConfig = field(default_factory=HparamsSearchConfig)
    followed: dict[str, str] = field(default_factory=dict)
    """Why a value follows from the model, the text or the device, by dotted key; filled while the configuration is
    checked, for all values that were not given (`ropewalk.defaults`)."""
