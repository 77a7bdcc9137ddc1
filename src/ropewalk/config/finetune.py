"""The sections finetune, baselines and parallel: fine-tuning, the baselines trained like it, and their devices."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from ropewalk.config import names
from ropewalk.config.keys import at_least, choice, positive, share, some_of, where

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "64-true")
"""Lightning's names, and auto: bf16-mixed where bf16 is native, else 32-true. Its bf16-true and 16-true are left out:
they train weights in half precision, in which most steps of fine-tuning are rounded away."""


@dataclass
class FinetuneStepConfig:
    """One step of the schedule: a number of optimizer steps at one length."""

    length: int = at_least(1)
    """Number of tokens in a row."""
    steps: int = at_least(0)
    """Number of optimizer steps; only finetune.second may have none."""
    batch_size: int = at_least(1)
    """Number of rows in an optimizer step."""
    learning_rate: float = positive()
    """Peak learning rate, reached after warmup_steps."""
    decay: str = choice(("linear", "constant"), "linear")
    """Learning rate after the warm-up: falling linearly to zero, or constant."""
    warmup_steps: int = at_least(0, 20)
    """Number of optimizer steps over which the learning rate rises linearly."""
    subsets: list[str] = field(default_factory=list)
    """Subsets of the corpus whose documents are read; all by default."""
    scaling: str = where(
        lambda name: name in ("searched", "none", *names.trainable_methods()) or name.endswith((".json", ".csv")),
        "must be searched, none, pi, ntk, yarn or the path of a .json or .csv",
        "searched",
    )
    """RoPE scaling that the model is trained under: the result of search_first (searched), a published method, or the
    path of a file of factors."""
    scaling_length: int | None = None
    """Target length of the scaling, one of extension.search_first.lengths; by default extension.target."""


@dataclass
class LoraConfig:
    """Low-rank adapters, which are merged into the weights after training; needs the extra lora."""

    rank: int = at_least(0, 0)
    """Rank of the adapters; 0 trains the weights themselves."""
    alpha: float = positive(16.0)
    """Scale of the adapters, whose output is multiplied by alpha / rank."""
    dropout: float = share(0.0)
    """Dropout probability of the adapters' inputs."""
    targets: list[str] = field(default_factory=list)
    """Names of the linear layers that get adapters; by default all but the output matrix."""
    embeddings: bool = False
    """Whether to train the input embeddings too, as LongLoRA does for long contexts."""
    norms: bool = False
    """Whether to train the norms too, as LongLoRA does for long contexts."""


@dataclass
class FinetuneConfig:
    """Fine-tuning of the base model under the searched scaling."""

    name: str = MISSING
    first: FinetuneStepConfig = field(default_factory=FinetuneStepConfig)
    second: FinetuneStepConfig = field(default_factory=FinetuneStepConfig)
    recall_share: float = share(0.0)
    """Share of rows that are recall documents (declared in the report)."""
    answer_weight: float = at_least(0, 0.1)
    """Weight with which the mean loss of each recall document's answers is added to the mean loss of all tokens, in
    which a few answers among thousands of tokens of filler hardly count."""
    long_context_weight: float | None = positive(None)
    """Largest weight of a token whose loss is weighted by how much likelier the long context makes it than a context
    within the original window (LongCE, whose authors take 5); by default all tokens count alike."""
    across_documents: bool = False
    """Whether rows are cut from a stream of documents with EOS and BOS between them, instead of single long documents.
    Searches and evaluation still read single documents, unless corpus.across_documents joins short ones for them too.
    """
    long_document_share: float = share(0.0)
    """Share of the rows that are cut from single documents as long as the row where the other rows go across documents,
    here or in the corpus; 0 for as many as there are in the text (length upsampling, as in ProLong's 60 %)."""
    micro_batch_size: int | None = at_least(1, None)
    """Number of rows in a forward pass, with gradient accumulation over the batch; by default set by
    micro_batch_tokens."""
    micro_batch_tokens: int = at_least(1, 8192)
    """Maximum number of tokens in a forward pass."""
    gradient_clip: float = positive(1.0)
    """Maximum norm of the gradient."""
    weight_decay: float = at_least(0, 0.0)
    precision: str = choice(PRECISIONS, "auto")
    """Lightning's name of the precision, or auto: bf16-mixed where bf16 is native, else 32-true. What is trained is
    float32, or float64 with 64-true, whatever model.dtype is; weights beside adapters stay in model.dtype."""
    checkpoint_every: int = at_least(1, 20)
    """Number of optimizer steps between saving checkpoints."""
    keep_checkpoints: int = at_least(1, 2)
    """Number of latest checkpoints to keep, in case one is damaged."""
    control: bool = True
    """Whether to train a control model too, on the same number of tokens in the original window."""
    before_first: list[FinetuneStepConfig] = field(default_factory=list)
    """Steps of the schedule before first, in the same stage, each starting from the previous one's weights."""
    before_second: list[FinetuneStepConfig] = field(default_factory=list)
    """Steps of the schedule between first and second, in the stage of second."""
    short_share: float = share(0.0)
    """Share of rows that are documents no longer than the original window, packed together and read under the original
    RoPE with attention kept inside each (LongRoPE2's mixed windows)."""
    learn_factors: bool = False
    """Whether to train lambda and t together with the weights."""
    factors_learning_rate: float = positive(0.002)
    """Learning rate for log lambda and log t."""
    activation_checkpointing: str = choice(("none", "full", "offload"), "none")
    """Activations for the backward pass: kept (none), recomputed (full), or recomputed from layer inputs that are held
    in CPU memory, norms and feed-forward layers a tile of 8,192 tokens at a time (offload)."""
    optimizer: str = choice(("adamw", "adamw_fused", "adamw_8bit"), "adamw")
    """Optimizer; adamw_8bit keeps its states in 8 bits with bitsandbytes and needs the extra low-memory."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    compile: bool = False
    """Whether to compile each layer with torch.compile, which takes a minute at first; layers alike share a graph."""
    bad_steps: int = at_least(0, 0)
    """Number of consecutive steps with a loss or gradient that is not finite which are skipped; the next one ends the
    training."""
    positions_every: int = at_least(0, 10)
    """Number of optimizer steps between recordings of the loss by position; 0 for none."""
    peak_tflops: float | None = positive(None)
    """Peak TFLOPS of a device, relative to which utilisation is reported; by default the known value of the GPU, or a
    measurement of the CPU."""

    def weights_dtype(self, model_dtype: str) -> str:
        """dtype of the weights in training: that of the model where only adapters are trained."""
        if self.lora.rank:
            return model_dtype
        return "float64" if self.precision == "64-true" else "float32"

    def steps_of(self, stage: str) -> dict[str, FinetuneStepConfig]:
        """The schedule of the stage first or second, in order, by key."""
        before = getattr(self, f"before_{stage}")
        return {
            **{f"finetune.before_{stage}[{place}]": step for place, step in enumerate(before)},
            f"finetune.{stage}": getattr(self, stage),
        }

    @property
    def schedule(self) -> dict[str, FinetuneStepConfig]:
        """Every step of both stages, in order, by key."""
        return {**self.steps_of("first"), **self.steps_of("second")}


@dataclass
class BaselinesConfig:
    """Trained baselines: published methods fine-tuned like ours, to compare with."""

    methods: list[str] = some_of(names.trainable_methods, [], once=True)
    """Methods under each of which one more model is trained, for as many steps as ours."""


@dataclass
class ParallelConfig:
    """The devices of training and evaluation. They say where, not what: a training resumes when they change."""

    name: str = MISSING
    strategy: str = choice(("single_device", "ddp", "fsdp"), "single_device")
    """Distribution of the model: one process (single_device), a copy on every device (ddp), or a shard on every device
    (fsdp)."""
    devices: int = at_least(1, 1)
    """Number of devices of each machine."""
    nodes: int = at_least(1, 1)
    """Number of machines."""
    context: int = at_least(1, 1)
    """Number of devices that share a row, each holding a slice of it; divides devices times nodes."""
    attention: str = choice(("auto", "gathered", "ring"), "auto")
    """Exchange of keys and values between the devices that share a row: all at once (gathered), one device's at a time
    with torch's ring attention, which knows no masks (ring), or ring on GPUs where no masks are needed (auto)."""
