"""The sections search and extension: how factors are searched, and for which lengths."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from ropewalk.config import names
from ropewalk.config.keys import at_least, choice, positive, rising_lengths, share, where


@dataclass
class FitnessConfig:
    """What candidates are judged by (group search/fitness)."""

    name: str = "perplexity"
    lengths: list[float] = where(
        lambda shares: 1.0 in shares and all(0 < share <= 1 for share in shares),
        "must hold 1.0, the target length itself, and beside it only shares of it, above 0",
        [1.0],
    )
    """Lengths at which documents are read, as shares of the target length."""
    weights: list[float] = positive([1.0])
    """Weight of the mean loss at each of lengths; normalised to sum to 1."""
    text_weight: float = at_least(0, 1.0)
    """Weight of the mean loss over all tokens of the text."""
    needles: int = at_least(0, 0)
    """Number of facts hidden in each document, half of them asked for in its middle and half at its end."""
    needle_weight: float = at_least(0, 0.0)
    """Weight of the mean loss over the answers about these facts."""
    copied_weight: float = at_least(0, 0.0)
    """Weight of the mean loss over the tokens that the text copies from farther back than the model's window."""

    @property
    def is_perplexity(self) -> bool:
        """Whether every token of the text counts alike, and nothing else."""
        return not self.needles and not self.copied_weight

    @property
    def judged(self) -> str:
        """What counts, in words."""
        kinds = (
            (self.text_weight, "all tokens"),
            (self.needle_weight, f"the answers to {self.needles} questions a document"),
            (self.copied_weight, "tokens copied from beyond the window"),
        )
        weighted = [(weight, kind) for weight, kind in kinds if weight]
        return ", ".join(f"{kind} ({weight:g})" if len(weighted) > 1 else kind for weight, kind in weighted)


@dataclass
class RaceConfig:
    """Early stopping of hopeless candidates, by Wilcoxon's test on the blocks that they and the best one have read."""

    blocks: int = at_least(0, 0)
    """Number of blocks per document, at least 32 over all documents, or the test cannot fire early; 0 for no race."""
    p_value: float = where(lambda value: 0 < value < 1, "must lie between 0 and 1", 0.3)
    """Significance level below which a candidate is stopped. It is high because a candidate stopped wrongly can still
    become a parent, by the estimate of its loss."""
    shorter: list[float] = where(
        lambda shares: all(0 < share < 1 for share in shares),
        "must hold shares of the target length above 0 and below 1",
        [],
    )
    """Lengths at which every document is read before it is read in full, as shares of the target length."""


@dataclass
class SearchConfig:
    """A search for rescale factors, n_hat and the attention factor."""

    name: str = MISSING
    sampler: str = choice(names.samplers, "evolution")
    """Sampler that proposes candidates; start_tokens varies n_hat only."""
    critical: bool = False
    """Whether to search LongRoPE2's space: lambda in [s, 2s] from the critical dimension up, which is searched too."""
    fitness: FitnessConfig = field(default_factory=FitnessConfig)
    race: RaceConfig = field(default_factory=RaceConfig)
    gradient_steps: int = at_least(0, 0)
    """Number of gradient steps on (lambda, t), whose path becomes part of the initial population; 0 for none."""
    gradient_batch_size: int = at_least(1, 2)
    """Number of segments in a gradient step."""
    gradient_learning_rate: float = positive(0.2)
    """Learning rate for the increments of log lambda before softplus; log t is learned at a sixteenth of it, and
    logarithms of query scales at half of it."""
    double_length_every: int | None = at_least(1, None)
    """Every how many gradient steps of the first search one reads rows of twice the target: inputs beyond the target
    then lose less, and those at the target a little; null for none. Left out where no document is that long."""
    query_scales: str = choice(("none", "head", "pair"), "none")
    """What the gradient of the first search learns beside the factors: nothing (none), a scale for the queries of each
    head, or one for each dimension pair of each head. Scales are multiplied into the weights on export."""
    activation_checkpointing: str = choice(("none", "full", "offload"), "none")
    """Activations for the gradient's backward pass: kept (none), recomputed (full), or recomputed from layer inputs
    that are held in CPU memory, norms and feed-forward layers a tile of 8,192 tokens at a time (offload)."""
    trials: int = at_least(0, 1344)
    """Number of Optuna trials, including the initial population and the trials stopped early."""
    initial_population: int = at_least(1, 64)
    """Number of trials in the initial population."""
    population_size: int = at_least(1, 32)
    """Number of trials in each later generation."""
    num_parents: int = at_least(1, 32)
    """Number of best trials so far from which a generation is bred."""
    mutation_probability: float = share(0.3)
    """Probability that a gene mutates."""
    knots: int = at_least(1, 6)
    """cmaes, tpe and random: number of frequency pairs whose lambda is sampled; log lambda is linear between them."""
    starts: list[str] = field(default_factory=list)
    """Files of factors (.json, or a .csv table for extension.target) that the first search evaluates beside the
    published methods and may start from."""
    documents: int = at_least(1, 5)
    """Number of documents of the search split that the fitness reads."""
    batch_tokens: int = at_least(1, 16_384)
    """Maximum number of tokens in a forward pass; longer documents are read in chunks, layer by layer."""
    step: float = positive(0.0001)
    """Grid of the factors, which are multiples of it above 1; the paper's 0.01 is too coarse for fast pairs."""
    upper_ratio: float = at_least(1, 1.25)
    """Maximum lambda, as a multiple of s."""
    attention_factor: list[float] | None = where(
        lambda bounds: len(bounds) == 2 and 0 < bounds[0] <= bounds[1], "must be the lowest and the highest", [0.9, 1.6]
    )
    """Lowest and highest attention factor; the same value twice fixes it, null fixes it at LongRoPE's
    sqrt(1 + ln s / ln L0)."""
    budget_tokens: int | None = at_least(1, None)
    """Number of forward tokens after which no trial starts; a backward pass counts as two forward passes. The gradient
    steps, which precede the trials, must fit in."""
    patience: int | None = at_least(1, None)
    """Number of trials without an improvement of min_delta after which the search ends."""
    min_delta: float = at_least(0, 0.0005)
    """Minimum decrease of the loss, in nats, that counts as an improvement."""
    workers: int = at_least(1, 1)
    """Number of processes on this machine, one per device."""
    storage: str | None = None
    """Address of an Optuna database that several machines share; by default a file beside the search's state."""
    study_name: str | None = None
    """Name of the study in a shared storage, appended to the stage's name; by default a hash of the stage's inputs."""
    heartbeat_seconds: int = at_least(1, 10)
    """Seconds between a worker's heartbeats; after three missed ones another worker takes over its trial."""
    storage_timeout: int = at_least(0, 300)
    """Seconds for which a shared storage may be unreachable."""


PLACEMENT = (
    "workers",
    "storage",
    "study_name",
    "heartbeat_seconds",
    "storage_timeout",
    "batch_tokens",
    "activation_checkpointing",
)
"""Keys of `SearchConfig` that say where and in how much memory a search runs, not what it finds: a search resumes when
they change."""
EXTENT = ("trials", "budget_tokens", "patience", "min_delta")
"""Keys of `SearchConfig` that say how far a search goes: a study resumes when they allow it to go further."""


@dataclass
class SearchTargetConfig:
    """The lengths of one search stage, and what it searches with in place of the section search."""

    lengths: list[int] = rising_lengths(empty=True)
    """Lengths in tokens, searched in order, each starting from the previous one's result; only search_second may have
    none."""
    trials: list[int] | None = at_least(0, None)
    """Values that replace search.trials, one per length; null for none."""
    gradient_steps: list[int] | None = at_least(0, None)
    """Values that replace search.gradient_steps, one per length; null for none."""
    documents: int | None = at_least(1, None)
    """Value that replaces search.documents; null for none."""


@dataclass
class ExtensionConfig:
    """How, and to which lengths in tokens, the context window is extended."""

    way: str = choice(("untrained", "trained", "long"))
    """untrained: factors are searched, and no weight changes. trained: the model is then trained at half the target
    and at the whole of it. long: as trained, and factors for second_target are searched on the trained model."""
    factor: float | None = where(lambda factor: factor > 1, "must be above 1")
    """The target over the model's window; null where the target is given."""
    target: int = at_least(1)
    """Length that is searched on the base model, and then trained at; factor times the window by default."""
    second_target: int = at_least(1)
    """Length that is searched on the fine-tuned model, without training at it; the target unless way is long."""
    search_first: SearchTargetConfig = field(default_factory=SearchTargetConfig)
    """Search on the base model; its last length is target."""
    search_second: SearchTargetConfig = field(default_factory=SearchTargetConfig)
    """Search on the fine-tuned model; its last length is second_target."""
    recover: SearchTargetConfig = field(default_factory=SearchTargetConfig)
    """Search for separate factors at short lengths, on the extended model."""
