"""The sections evaluate and rope: what is measured, at which lengths, and under which methods."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from ropewalk.config import names
from ropewalk.config.keys import at_least, rising_lengths, some_of, where


@dataclass
class RetrievalConfig:
    """Reading whole documents compared with retrieving chunks for the base model; needs the extra retrieval."""

    lengths: list[int] = rising_lengths([], empty=True)
    """Lengths of the documents in tokens; empty for no such comparison."""
    tasks: list[str] = some_of(
        lambda: ("passkey", *names.needles()),
        ["passkey", "single", "multi_key", "multi_value", "variable_tracking", "multi_key_text"],
        once=True,
    )
    """Tasks to compare on: passkey, and needle tasks as in evaluate.needles."""
    trials: int = at_least(1, 40)
    """Number of prompts per task and length, spread over the depths of passkey_depths and needle_depths."""
    chunk_tokens: int = at_least(2, 64)
    """Number of tokens in a retrieved chunk; as many chunks are read as fit into the base model's window."""


@dataclass
class BenchmarksConfig:
    """General benchmarks through lm-evaluation-harness (group evaluate/benchmarks); needs the extra bench."""

    name: str = "none"
    tasks: list[str] = some_of(names.benchmarks, [])
    """Tasks to evaluate."""
    path: str | None = None
    """Folder of local files (`ropewalk.evaluate.questions`); by default the questions come from the hub."""
    limit: int | None = at_least(1, None)
    """Number of questions of each task, from its start; all by default."""
    shots: dict[str, int] = where(
        lambda shots: set(shots) <= set(names.benchmarks()) and min(shots.values(), default=0) >= 0,
        lambda: f"must be numbers from 0 by task ({', '.join(names.benchmarks())})",
        {},
    )
    """Number of examples before each question, by task; by default the paper's."""
    batch_tokens: int = at_least(1, 4096)
    """Maximum number of tokens in a forward pass; a longer prompt is read alone. Scores do not depend on it."""


@dataclass
class EvaluateConfig:
    """What the stage evaluate measures."""

    name: str = MISSING
    lengths: list[int] = rising_lengths()
    """Lengths in tokens at which perplexity is measured; must hold the window and extension.target."""
    base_lengths: list[int] = rising_lengths()
    """Lengths, among those, at which the base model is evaluated under every method too."""
    factors: list[str] = field(default_factory=list)
    """Files of factors (.json, or a .csv table for extension.target) that the base model is evaluated under too,
    each under its file's name."""
    documents: int | None = at_least(1, None)
    """Number of test documents up to the first target; null for all that are long enough."""
    long_documents: int | None = at_least(1, 8)
    """Number of test documents beyond the first target."""
    passkey_lengths: list[int] = rising_lengths()
    """Lengths of the passkey prompts in tokens."""
    passkey_trials: int = at_least(1, 100)
    """Number of passkey trials per length up to the first target: half in the published form, which repeats a few
    sentences around a key of five digits, and half with keys of several kinds in test documents."""
    passkey_long_trials: int = at_least(1, 20)
    """Number of passkey trials per length beyond the first target."""
    passkey_depths: int = at_least(1, 10)
    """Number of bands of depth, from the start of the prompt to its end, that the passkey trials are spread over; the
    place of a key is drawn within its band."""
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    needles: list[str] = some_of(names.needles, [], once=True)
    """Needle tasks after RULER."""
    needle_lengths: list[int] | None = rising_lengths(None)
    """Lengths of the needle prompts in tokens; by default passkey_lengths."""
    needle_trials: int = 20
    """Number of prompts per needle task and length."""
    needle_depths: int = at_least(1, 5)
    """Number of depths that the prompts are spread over, for the tasks that ask for one needle."""
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    stride: int | None = at_least(1, None)
    """Stride in tokens of a second perplexity measurement, in sliding windows of each length; null for one pass only.
    """
    chunk_tokens: int = at_least(1, 16_384)
    """Maximum number of tokens in a forward pass; longer inputs are read in chunks, layer by layer."""
    cache: str | None = "work/measured"
    """Folder of measured figures, shared by all runs; null to keep none."""


@dataclass
class RopeConfig:
    """The methods that are compared (group rope)."""

    methods: list[str] = some_of(names.methods, MISSING, empty=False)
    """Methods that evaluate compares; longrope stands for the searched factors."""
