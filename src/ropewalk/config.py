"""The schema of conf/: every section as a dataclass."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class SourceConfig:
    """Where text comes from."""

    name: str = MISSING
    """stdlib, jsonl, text, redpajama_v1, redpajama_sample or redpajama_v2; for a whole corpus also mixture."""
    path: str | None = None
    """jsonl: a glob or fsspec URL of JSON lines (.jsonl, .jsonl.zst, .json.gz). text: a folder of .txt files."""
    url: str | None = None
    """redpajama_v1: address of urls.txt; redpajama_sample and redpajama_v2: address of the folder of all files."""
    subsets: list[str] = field(default_factory=list)
    """redpajama_v1, redpajama_sample: the subsets to fetch; all by default."""
    text_field: str = "text"
    """jsonl: name of a row's text; dots lead into inner objects."""
    id_field: str | None = None
    """jsonl: name of a row's id; by default where RedPajama-V1 has it, else a hash of the text."""
    languages: list[str] = field(default_factory=lambda: ["en"])
    """redpajama_v2: of en, de, fr, es, it ..."""
    snapshots: list[str] = field(default_factory=list)
    """... crawls such as 2023-06 ..."""
    buckets: list[str] = field(default_factory=lambda: ["head", "middle"])
    """... and perplexity buckets, of head, middle, tail."""
    files: int | None = None
    """redpajama_v2: number of listed files to fetch; all by default."""
    quality: dict[str, list[Any]] = field(default_factory=dict)
    """redpajama_v2: lowest and highest value of each quality signal that a document may have; null for none."""
    drop_listed_duplicates: bool = True
    """redpajama_v2: leave out what the published lists of duplicates name."""
    largest_download_mib: int | None = None
    """Cap on what is fetched; files beyond it are left out, in the order of the listing."""
    parallel_downloads: int = 8
    """Files fetched at once."""
    download_timeout: float = 60.0
    """Seconds without a byte after which a connection counts as broken."""


@dataclass
class CorpusConfig(SourceConfig):
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """mixture: its sources by a label of one's own; subsets are then called LABEL/SUBSET."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of each subset, or of each source of a mixture, in the training tokens; as they come by default."""
    mixture_tokens: int | None = None
    """Training tokens under weights; as many as the scarcest share allows by default."""
    downloads: str | None = None
    """Folder that fetched files are kept in; downloads below work by default."""
    fingerprint: str | None = None
    """What the source looked like when the configuration was composed; set by the stage compose."""
    least_tokens: int = 0
    """Tokens of a document below which it is left out ..."""
    least_tokens_by_subset: dict[str, int] = field(default_factory=dict)
    """... and other such numbers by subset."""
    exact_duplicates: bool = True
    """Whether one of several documents of the same text is kept."""
    near_duplicates: float = 0.0
    """Estimated share of common 5-grams of words from which only one of two documents is kept; 0 for no search."""
    evaluation_sets: list[str] = field(default_factory=list)
    """Globs of JSON lines or .txt whose text must not be trained on."""
    evaluation_field: str = "text"
    """Name of the text in rows of evaluation_sets."""
    evaluation_words: int = 13
    """Words in a row that count as an overlap with evaluation_sets."""
    evaluation_overlap: int = 1
    """Number of such overlaps from which a training document is left out."""
    search_share: float = 0.15
    """Share of documents that the searches read ..."""
    test_share: float = 0.15
    """... and that evaluate reads; fine-tuning reads the rest."""
    salt: str = ""
    """Chosen once per corpus: it decides which documents fall into which split."""
    least_long_documents: int = 8
    """Documents that search and test must each hold ..."""
    long_tokens: int = 16_384
    """... with at least so many tokens."""
    largest_rejected_share: float = 0.1
    """Damaged rows, as a share of all, above which the stage fails."""
    workers: int | None = None
    """Processes that read and tokenise; one a core by default."""


@dataclass
class ModelConfig:
    name: str = MISSING
    path: str = MISSING
    """A local folder with a transformers checkpoint, or a hub id."""
    original_length: int | None = None
    """Window in tokens; by default what the checkpoint says."""
    start: str = "checkpoint"
    """checkpoint: from the scaling that it came with, and the window that this reaches; plain: from plain RoPE."""
    dtype: str = "float32"
    trust_remote_code: bool = False
    """Run the code that comes with a checkpoint whose architecture transformers does not have."""
    keep_sliding_window: bool = False
    """Leave attention to the last tokens only where the checkpoint has it; otherwise it is turned off, as the paper
    does for Mistral."""

    @property
    def loading(self) -> dict[str, Any]:
        """Keyword arguments of `ropewalk.models.base.load_model`."""
        names = ("dtype", "trust_remote_code", "keep_sliding_window")
        return {name: getattr(self, name) for name in names}

    @property
    def trust(self) -> dict[str, bool]:
        """Those of `load_tokenizer` and `window_of`."""
        return {"trust_remote_code": self.trust_remote_code}


@dataclass
class FitnessConfig:
    """What candidates are judged by (group search/fitness)."""

    name: str = "perplexity"
    lengths: list[float] = field(default_factory=lambda: [1.0])
    """Lengths that documents are read at, as shares of the target length."""
    weights: list[float] = field(default_factory=lambda: [1.0])
    """Of each length's mean loss; they are made to sum to 1."""
    needles: int = 0
    """Facts hidden in each document, whose repetition at its end alone is judged; 0 to judge every token."""


@dataclass
class RaceConfig:
    """Stopping hopeless candidates early, by Wilcoxon's test on blocks that both they and the best have read."""

    blocks: int = 0
    """Blocks of each document; all documents together need 32 or the test cannot fire early. 0 for no race."""
    p_value: float = 0.3
    """A candidate is stopped below it; high, as one that is wrongly stopped still becomes a parent by its estimate."""
    shorter: list[float] = field(default_factory=list)
    """Shares of the length that every document is read at first."""


@dataclass
class SearchConfig:
    name: str = MISSING
    sampler: str = "evolution"
    """evolution, paper, start_tokens (only n_hat), cmaes, tpe or random."""
    critical: bool = False
    """LongRoPE2's space: lambda in [s, 2s] from the critical dimension up, which is searched too."""
    fitness: FitnessConfig = field(default_factory=FitnessConfig)
    """What a candidate is judged by ..."""
    race: RaceConfig = field(default_factory=RaceConfig)
    """... and when it is given up before all is read."""
    gradient_steps: int = 0
    """Gradient steps on (lambda, t) whose path seeds the population; 0 for none."""
    gradient_rows: int = 2
    """Segments in a gradient step."""
    gradient_learning_rate: float = 0.2
    """Of log lambda's increments (before softplus); log t learns at a sixteenth of it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass in place of keeping them."""
    trials: int = 1344
    """Optuna trials, the initial population included; those stopped early count."""
    initial: int = 64
    """Trials in the initial population."""
    children: int = 32
    """Trials in each later generation."""
    parents: int = 32
    """The best trials so far, which a generation is bred from."""
    mutation_probability: float = 0.3
    """Of each gene."""
    knots: int = 6
    """Of cmaes, tpe and random, which set lambda at so many pairs with straight lines (in log lambda) between."""
    starts: list[str] = field(default_factory=list)
    """Files of factors (.json, or a .csv table for road.first_target) that the first search reads beside the published
    methods, and begins from too."""
    documents: int = 5
    """Documents of the search split that the fitness reads."""
    batch_tokens: int = 16_384
    """Tokens in a forward pass, at most."""
    step: float = 0.0001
    """Factors are multiples of it above 1; the paper's is 0.01, too coarse for pairs that turn fast."""
    upper_ratio: float = 1.25
    """Largest lambda as a multiple of s."""
    attention_factor: list[float] | None = field(default_factory=lambda: [0.9, 1.6])
    """Lowest and highest; both the same value fixes it, null fixes it at LongRoPE's sqrt(1 + ln s / ln L0)."""
    budget_tokens: int | None = None
    """Forward tokens after which no trial is begun; a backward pass counts as two forward passes more. What comes
    before the first trial must fit in."""
    patience: int | None = None
    """Trials without a gain of least_gain after which the search ends."""
    least_gain: float = 0.0005
    """In nats."""
    workers: int = 1
    """Processes on this machine, one per device."""
    storage: str | None = None
    """Address of a database for Optuna that several machines share; a file beside the search's state by default."""
    study_name: str | None = None
    """In a shared storage, after the stage's name; by default a hash of what the stage reads."""
    heartbeat_seconds: int = 10
    """A worker silent for three times as long has its trial taken over."""
    storage_timeout: int = 300
    """Seconds that a shared storage may be away."""


PLACEMENT = (
    "workers",
    "storage",
    "study_name",
    "heartbeat_seconds",
    "storage_timeout",
    "batch_tokens",
    "gradient_checkpointing",
)
"""What of `SearchConfig` says where and in what memory a search runs, not what it finds: it goes on as the same when
these change."""
EXTENT = ("trials", "budget_tokens", "patience", "least_gain")
"""What says how far a search goes: a study goes on when it may go further."""


@dataclass
class SearchTargetConfig:
    lengths: list[int] = MISSING
    """Lengths searched in order, each starting from the last one's result."""
    trials: list[int] | None = None
    """In place of search.trials, one per length."""
    gradient_steps: list[int] | None = None
    """In place of search.gradient_steps, one per length."""
    documents: int | None = None
    """In place of search.documents."""


@dataclass
class RoadConfig:
    """Lengths in tokens."""

    first_target: int = MISSING
    """Searched on the base model, then trained at."""
    second_target: int = MISSING
    """Searched on the fine-tuned model, without training at it."""
    search_first: SearchTargetConfig = field(default_factory=SearchTargetConfig)
    """The last length is first_target."""
    search_second: SearchTargetConfig = field(default_factory=SearchTargetConfig)
    """The last length is second_target."""
    recover: SearchTargetConfig = field(default_factory=SearchTargetConfig)
    """Short lengths that the extended model gets factors of their own for."""


@dataclass
class FinetuneStepConfig:
    length: int = MISSING
    steps: int = MISSING
    rows: int = MISSING
    """Rows in an optimizer step."""
    learning_rate: float = MISSING
    decay: str = "linear"
    """linear (to zero) or constant."""
    warmup_steps: int = 20
    subsets: list[str] = field(default_factory=list)
    """Subsets of the corpus whose documents are read; all by default."""
    scaling: str = "searched"
    """What the model is trained under: searched (by search_first), a published method (none, pi, ntk, yarn), or the
    path of a RopeScaling in JSON."""
    scaling_length: int | None = None
    """Length that the scaling is for, one of road.search_first.lengths; road.first_target by default."""


@dataclass
class LoraConfig:
    """Low-rank adapters, merged into the weights when the training is done; needs the extra lora."""

    rank: int = 0
    """Of the adapters; 0 trains the weights themselves."""
    alpha: float = 16.0
    """Adapters count alpha / rank."""
    dropout: float = 0.0
    """On the adapters' inputs."""
    targets: list[str] = field(default_factory=list)
    """Names of the linear layers that get adapters; all but the output matrix by default."""
    embeddings: bool = False
    """Also train the input embeddings ..."""
    norms: bool = False
    """... and the norms, as LongLoRA does: long contexts need both."""


@dataclass
class FinetuneConfig:
    name: str = MISSING
    first: FinetuneStepConfig = field(default_factory=FinetuneStepConfig)
    second: FinetuneStepConfig = field(default_factory=FinetuneStepConfig)
    recall_share: float = 0.0
    """Share of rows that are recall documents (declared in the report)."""
    answer_weight: float = 0.1
    """The mean loss of each recall document's answers is added this many times to the mean loss of all tokens, in
    which a few answers among thousands of tokens of filler count for nothing."""
    across_documents: bool = False
    """Cut rows from the documents one after another, EOS and BOS between them, in place of single long documents."""
    rows_at_once: int | None = None
    """Rows in a forward pass; the rest of a step is gradient accumulation. By default from tokens_at_once."""
    tokens_at_once: int = 8192
    """Tokens in a forward pass, at most."""
    gradient_clip: float = 1.0
    weight_decay: float = 0.0
    precision: str = "auto"
    """Lightning's name, or auto: bf16-mixed where bf16 is native, else 32-true."""
    checkpoint_every: int = 20
    """Optimizer steps between two checkpoints ..."""
    keep_checkpoints: int = 2
    """... of which the last so many are kept, in case one is damaged."""
    control: bool = True
    """Also train a control on the same number of tokens in the original window."""
    before_first: list[FinetuneStepConfig] = field(default_factory=list)
    """Steps of the schedule before first, in its stage, each starting from the last one's weights ..."""
    before_second: list[FinetuneStepConfig] = field(default_factory=list)
    """... and those between first and second, in the stage of second."""
    short_share: float = 0.0
    """Share of rows that are documents no longer than the original window, packed together and read under the original
    RoPE with attention kept inside each (LongRoPE2's mixed windows)."""
    learn_factors: bool = False
    """Train lambda and t with the weights ..."""
    factors_learning_rate: float = 0.002
    """... at this rate, of log lambda and log t."""
    activations: str = "keep"
    """What the backward pass needs of each layer: keep it, recompute it, or recompute it from inputs that lie in the
    processor's memory meanwhile (offload)."""
    optimizer: str = "adamw"
    """adamw, adamw_fused, or adamw_8bit (bitsandbytes' states of 8 bits; needs the extra low-memory)."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters in place of the weights."""
    compile: bool = False
    """Compile the model's body with torch.compile, which takes minutes at first."""
    bad_steps: int = 0
    """Steps in a row whose loss or gradient is no number that are left out; one more ends the training."""
    positions_every: int = 10
    """Steps between two readings of the loss by position; 0 for none."""
    peak_tflops: float | None = None
    """Of one device, which utilisation is a share of; by default what is known of the GPU, measured on a CPU."""

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
class RivalsConfig:
    """Published methods fine-tuned like ours, to compare with."""

    methods: list[str] = field(default_factory=list)
    """Some of pi, ntk, yarn: one more model is trained for each, for as many steps as ours. None by default."""


@dataclass
class RetrievalConfig:
    """Answers from whole documents beside those of the base model from retrieved chunks; needs the extra retrieval."""

    lengths: list[int] = field(default_factory=list)
    """Lengths of the documents, in tokens; none for no such comparison."""
    tasks: list[str] = field(
        default_factory=lambda: [
            "passkey", "single", "multi_key", "multi_value", "variable_tracking", "multi_key_text"
        ]
    )  # fmt: skip
    """passkey, and needle tasks as in evaluate.needles."""
    trials: int = 40
    """Prompts per task and length, spread over as many places as passkey_depths and needle_depths say."""
    chunk_tokens: int = 64
    """Tokens in a retrieved chunk; as many as fit into the base model's window are read."""


@dataclass
class BenchmarksConfig:
    """General benchmarks through lm-evaluation-harness (group evaluate/benchmarks); needs the extra bench."""

    name: str = "none"
    tasks: list[str] = field(default_factory=list)
    """Some of arc_challenge, arc_easy, hellaswag, mmlu, truthfulqa_mc1, truthfulqa_mc2, gsm8k."""
    path: str | None = None
    """Folder of local files (`ropewalk.evaluate.questions`); by default the questions come from the hub."""
    limit: int | None = None
    """The first questions of each task; all by default."""
    shots: dict[str, int] = field(default_factory=dict)
    """Examples before each question, by task, in place of the paper's."""


@dataclass
class EvaluateConfig:
    name: str = MISSING
    lengths: list[int] = MISSING
    """Lengths at which perplexity is measured; the window and road.first_target are among them."""
    base_lengths: list[int] = MISSING
    """Those at which the base model is read under every method too."""
    factors: list[str] = field(default_factory=list)
    """Files of factors (.json, or a .csv table for road.first_target) that the base model is read under too, each under
    its file's name."""
    documents: int | None = None
    """Test documents up to the first target; all that are long enough by default."""
    long_documents: int | None = 8
    """Test documents beyond it."""
    passkey_lengths: list[int] = MISSING
    """Lengths of the passkey prompts."""
    passkey_trials: int = 100
    """Trials per length up to the first target ..."""
    passkey_long_trials: int = 20
    """... and beyond it."""
    passkey_depths: int = 10
    """Places in the prompt that the trials are spread over, from its start to its end."""
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    """Retrieval or long context."""
    needles: list[str] = field(default_factory=list)
    """Needle tasks after RULER: some of single, multi_key, multi_value, variable_tracking, multi_key_text."""
    needle_lengths: list[int] | None = None
    """Lengths of their prompts; by default passkey_lengths."""
    needle_trials: int = 20
    """Prompts per task and length ..."""
    needle_depths: int = 5
    """... spread over so many places, for the tasks that ask for one needle."""
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    """General benchmarks, in the original window and in the extended one."""
    stride: int | None = None
    """Also measure perplexity in windows of each length that slide by so many tokens; null for one pass alone."""
    chunk_tokens: int = 16_384
    """Tokens in a forward pass, at most; longer inputs are read in chunks of so many with a KV cache."""
    cache: str | None = "work/measured"
    """Folder of measured figures, shared by all runs; null to keep none."""


@dataclass
class ExportConfig:
    short_factor: str = "same"
    """same: one factor set for every length, safe in any software. recovered: the factors for short inputs too, which
    garble text in most software when generation crosses the original window."""
    gguf: str | None = None
    """float16 or float32: also write model.gguf for llama.cpp, of a Llama-shaped model; needs the extra gguf."""
    license: str | None = None
    """Licence of the base model, for the card; by default what the card in its folder says."""


@dataclass
class ShowConfig:
    """pipelines/show.py, where it shows a table of factors in place of model.path's scaling."""

    table: str | None = None
    """CSV file of factors, one row, or one row per layer."""
    original_length: int | None = None
    """Window that the factors start from, in tokens; needed with a table."""
    target_length: int | None = None
    """Window that they are for; needed with a table."""
    base: float = 10_000.0
    """Base of the rotary frequencies of the model that the table is for."""


@dataclass
class PushConfig:
    """pipelines/push.py: where an exported model goes; at least one of these."""

    model: str = "results/model"
    """The exported folder."""
    folder: str | None = None
    """A local folder that is empty, not there, or an earlier push."""
    hub: str | None = None
    """A hub repository, owner/name; the token is read from HF_TOKEN alone."""
    mlflow: str | None = None
    """Name in MLflow's model registry."""
    private: bool = True
    """Make a new hub repository private."""


@dataclass
class RopeConfig:
    methods: list[str] = MISSING
    """Methods that evaluate compares: names of ropewalk.rope.methods, longrope for the searched factors."""


@dataclass
class WalkerConfig:
    """Training of the embedded base model (`make walker`)."""

    cycles: list[int] = field(default_factory=lambda: [12_000, 24_000])
    """Steps of each cosine of the learning rate."""
    learning_rates: list[float] = field(default_factory=lambda: [1e-3, 3e-3])
    """Peak of each cosine, reached after 2 % of its steps. Attention learns to look back at the first, not at 3e-3."""
    rows: int = 16
    """Rows of 256 tokens in a step."""
    weight_decay: float = 0.1
    practice_steps: int = 3000
    """Pace of the practice rows, from which attention learns to look back (`ropewalk.corpus.practice`)."""
    recall_share: float = 0.4
    """Share of the later rows that are recall documents."""
    precision: str = "auto"
    """Lightning's name, or auto: bf16-mixed where bf16 is native, else 32-true."""


@dataclass
class ParallelConfig:
    """Devices that fine-tuning runs on. It says where, not what: a training goes on when these change."""

    name: str = MISSING
    strategy: str = "one"
    """one (no other process), ddp (every device holds the model) or fsdp (every device holds a share of it)."""
    devices: int = 1
    """Of each machine."""
    nodes: int = 1
    """Machines."""
    context: int = 1
    """Devices that share a row, each holding a slice of it; it divides devices times nodes."""
    attention: str = "auto"
    """How these read each other's keys and values: gathered (all at once), ring (torch's ring attention, one device's
    at a time; without masks), or auto: ring on GPUs where no masks are needed, else gathered."""


@dataclass
class PlanConfig:
    """pipelines/plan.py: what a device can do; how many there are is in parallel."""

    name: str = MISSING
    tflops: float | None = None
    """Published dense bf16 TFLOPS; measured on this machine's processor where none is given."""
    memory_gib: float | None = None
    """Of a device; this machine's where none is given."""
    efficiency: float = 0.4
    """Share of tflops that is reached."""


@dataclass
class TrackingConfig:
    experiment: str = "ropewalk"
    uri: str | None = None
    """MLflow store; sqlite in mlflow.db of the project by default."""


@dataclass
class Config:
    seed: int = 0
    output: str = MISSING
    """Folder that a stage writes to."""
    inputs: str = "results"
    """Folder that a stage reads the earlier stages' results from."""
    work: str = "work"
    """Folder for resumable state; never a result."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    road: RoadConfig = field(default_factory=RoadConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    rivals: RivalsConfig = field(default_factory=RivalsConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    rope: RopeConfig = field(default_factory=RopeConfig)
    walker: WalkerConfig = field(default_factory=WalkerConfig)
    show: ShowConfig = field(default_factory=ShowConfig)
    push: PushConfig = field(default_factory=PushConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
