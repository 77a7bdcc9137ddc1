"""What works with every causal language model class of the installed transformers.

    python tests/zoo.py --write docs/models.md

Each class's tiny random model goes through loading, scaling, losses, decoding, training and export, and is compared
with transformers' own forward pass.
"""

import argparse
import copy
import logging
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import ropewalk
from ropewalk.export.checkpoint import export_checkpoint
from ropewalk.export.gguf import export_gguf
from ropewalk.export.load import load_extended
from ropewalk.files import write_text
from ropewalk.models.base import load_model
from ropewalk.models.capability import capability
from ropewalk.models.continuation import ReadPrompt
from ropewalk.models.head import keeps_documents_apart
from ropewalk.models.loss import hidden_states, long_token_losses, mean_loss, token_losses
from ropewalk.models.published import published_scaling
from ropewalk.rope import (
    LengthSwitch,
    RopeScaling,
    current_scaling,
    extend,
    find_rotary,
    methods,
    model_scaling,
    rotary_shape,
)
from tiny_models import byte_tokenizer
from tolerances import relative_error, rounding
from zoo_models import LEFT_OUT, MODEL_TYPES, SLIDING, VOCABULARY, WINDOW, save, tiny_config, tiny_model

RATIO = 4
TARGET = RATIO * WINDOW
SHORT, INSIDE, BEYOND = SLIDING - 8, WINDOW - 8, TARGET - 56
"""Row lengths in tokens: within sliding windows, within the original window, and beyond it."""

WORKS, REFUSED = "works", "refused"
LATE, WRONG, CRASH = "refused late", "wrong", "crash"
"""What none of our users should meet: an error that `capability` did not foretell, other figures than transformers',
and an error that is not ours."""


@dataclass(frozen=True)
class Outcome:
    """How a check ended, and why where it did not work."""

    kind: str
    reason: str = ""


@dataclass
class Specimen:
    """A tiny model saved in a folder, and what the checks made of it so far."""

    model_type: str
    folder: Path
    model: Any = None
    """As `load_model` returned it."""
    scaling: RopeScaling | None = None
    """YaRN for TARGET tokens, which ``model`` applies after the check of that name."""
    published: Any = None
    """The model of a YaRN checkpoint, under the scaling that was read from it."""

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"


def rows(length: int, count: int = 2) -> Tensor:
    """(count, length) random token ids other than the special ones, the same on every call.

    No token comes twice in a row: Doge chooses what to attend to by what a token is, and among equals by chance.
    """
    generator = torch.Generator().manual_seed(length)
    return torch.stack([3 + torch.randperm(VOCABULARY - 3, generator=generator)[:length] for _ in range(count)])


@torch.no_grad()
def logits(model: Any, length: int) -> Tensor:
    result: Tensor = model(rows(length), use_cache=False).logits
    return result


def tolerance(model: Any, length: int) -> float:
    """Relative error that rounding may leave in logits: the way to them leads through no more than every matrix."""
    matrices = sum(weight.shape[-1] for weight in model.parameters() if weight.dim() >= 2)
    layers = model.config.get_text_config().num_hidden_layers
    # The fastest rotary pair turns by length radians, which a rounded frequency misses by that many times eps.
    return rounding(matrices + layers * length) + length * torch.finfo(torch.float32).eps


class Difference(Exception):
    """Two figures that should be the same are not."""


def same(model: Any, actual: Tensor, expected: Tensor, what: str, *, length: int, times: float = 1.0) -> None:
    """Raise Difference where the two differ by more than rounding."""
    error = relative_error(actual, expected)
    if not error <= times * tolerance(model, length):
        raise Difference(f"{what} differ by {error:.1e}")


def yarn_parameters(config: Any) -> dict[str, Any] | None:
    """The config's rope_parameters with YaRN for TARGET tokens, None where it has none."""
    parameters = copy.deepcopy(getattr(config, "rope_parameters", None))
    if not parameters:
        return None
    yarn = {"rope_type": "yarn", "factor": float(RATIO), "original_max_position_embeddings": WINDOW}
    tables = {name: table for name, table in parameters.items() if isinstance(table, dict)}
    if not tables:
        return _plain(parameters) | yarn
    extended = next((name for name in sorted(tables) if "sliding" not in name and name != "main"), None)
    return {**parameters, extended: _plain(tables[extended]) | yarn} if extended else None


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The rope_parameters without those of any scaling."""
    keys = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate", "alpha")
    keys += ("low_freq_factor", "high_freq_factor", "short_factor", "long_factor")
    return {name: value for name, value in parameters.items() if name not in keys}


def with_rope(model: Any, parameters: Mapping[str, Any]) -> Any:
    """The same weights under other rope_parameters, as plain transformers builds the model."""
    config = copy.deepcopy(model.config)
    config.get_text_config().rope_parameters = dict(parameters)
    other = type(model)(config)
    other.load_state_dict(model.state_dict())
    return other.to(next(model.parameters()).device).eval()


# The checks, in the order in which they run.


def check_loading(specimen: Specimen) -> None:
    """`load_model` gives the logits of plain transformers, as far as sliding windows reach."""
    plain = AutoModelForCausalLM.from_pretrained(specimen.checkpoint, dtype=torch.float32).eval()
    specimen.model = load_model(str(specimen.checkpoint))
    same(plain, logits(specimen.model, SHORT), logits(plain, SHORT), "logits after loading", length=SHORT)


def check_own_scaling(specimen: Specimen) -> None:
    """Putting in the scaling that a model has already changes nothing."""
    model = specimen.model
    before = {length: logits(model, length) for length in (INSIDE, BEYOND)}
    extend(model, model_scaling(model))
    if (original := rotary_shape(model).original_length) != WINDOW:
        raise Difference(f"the window is {original} for {WINDOW}: windows")
    for length, expected in before.items():
        same(model, logits(model, length), expected, f"logits of {length} tokens", length=length)


def check_yarn(specimen: Specimen) -> None:
    """YaRN by ours is transformers' YaRN, inside the window and beyond it."""
    model = specimen.model
    specimen.scaling = methods.yarn(**vars(rotary_shape(model)), target_length=TARGET)
    plain = logits(model, BEYOND)
    parameters = yarn_parameters(model.config.get_text_config())
    expected = None
    if parameters:
        # Some classes take no YaRN: Phi-3.5-MoE reads the keys of longrope, and Gemma-4 has heads of several sizes.
        with suppress(KeyError, RuntimeError):
            expected = {length: logits(with_rope(model, parameters), length) for length in (INSIDE, BEYOND)}
    extend(model, specimen.scaling)
    ours = logits(model, BEYOND)
    if relative_error(ours, plain) < 10 * tolerance(model, BEYOND):
        raise Difference("YaRN changes nothing: logits")
    for length, theirs in (expected or {}).items():
        same(model, logits(model, length), theirs, f"{length} tokens' logits", length=length)


def check_published(specimen: Specimen) -> None:
    """The scaling read from a YaRN checkpoint gives the logits that plain transformers gives with it."""
    config = tiny_config(specimen.model_type).get_text_config()
    parameters = yarn_parameters(config)
    if parameters is None:
        return
    if hasattr(config, "qk_rope_head_dim") and "rope_type" in parameters:
        parameters |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    folder = specimen.folder / "published"
    try:
        save(tiny_model(specimen.model_type, rope_parameters=parameters), specimen.model_type, folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        plain = logits(model, SHORT)
    except (KeyError, RuntimeError, StrictDataclassClassValidationError):
        return  # A class that takes no YaRN, also in plain transformers.
    switch = published_scaling(folder).start
    if switch is None:
        raise Difference("the checkpoint's YaRN is not seen: scalings")
    loaded = load_model(str(folder))
    expected = {length: logits(loaded, length) for length in (INSIDE, BEYOND)}
    same(model, logits(loaded, SHORT), plain, "logits after loading", length=SHORT)
    extend(loaded, switch.longest)
    for length, theirs in expected.items():
        same(loaded, logits(loaded, length), theirs, f"{length} tokens' logits", length=length)
    specimen.published = loaded


def plain_losses(model: Any, ids: Tensor) -> Tensor:
    """Losses in nats from the logits of the class's own forward pass."""
    scores = model(ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(scores.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)


@torch.no_grad()
def check_loss(specimen: Specimen) -> None:
    """`token_losses` are the cross entropy of the class's own logits."""
    model, ids = specimen.model, rows(BEYOND)
    same(model, token_losses(model, ids), plain_losses(model, ids), "losses", length=BEYOND)


@torch.no_grad()
def check_chunks(specimen: Specimen) -> None:
    """Losses read in chunks are those of one pass."""
    model, ids = specimen.model, rows(BEYOND)
    same(model, long_token_losses(model, ids, chunk=48), plain_losses(model, ids), "losses in chunks", length=BEYOND)


@torch.no_grad()
def check_decoding(specimen: Specimen) -> None:
    """Greedy decoding takes the tokens with the highest logits of whole passes."""
    model, tokens = specimen.model, 5
    ids = rows(BEYOND, count=1)[0].tolist()
    chosen = list(ReadPrompt(model, ids, room=tokens, chunk=48).greedy(tokens))
    for token in chosen:
        scores = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        # Two tokens whose logits differ by rounding alone are both right.
        if scores.max() - scores[token] > tolerance(model, BEYOND) * scores.norm():
            raise Difference(f"token {len(ids) - BEYOND + 1} of greedy decoding: the logits say another")
        ids.append(token)


@torch.no_grad()
def check_packing(specimen: Specimen) -> None:
    """A document in a row of several is read as it is alone, or rows of several are refused."""
    model, ids = specimen.model, rows(2 * SHORT)
    positions = torch.arange(SHORT).repeat(2).expand_as(ids)
    try:
        packed = hidden_states(model, ids, position_ids=positions)
    except ValueError:
        if keeps_documents_apart(model.config.get_text_config()):
            raise Difference("the config says that documents of a row can be kept apart: masks") from None
        return
    alone = torch.cat([hidden_states(model, part) for part in ids.split(SHORT, dim=1)], dim=1)
    same(model, packed, alone, "states of documents in one row", length=SHORT)


def check_training(specimen: Specimen) -> None:
    """Gradients are those of the class's own loss, reach the factors, and two steps lower the loss."""
    model, ids = copy.deepcopy(specimen.model).train(), rows(BEYOND)
    rotary: Any = find_rotary(model)[1]
    rotary.factors.requires_grad_()
    # Phi-3.5-MoE draws its experts at random in training.
    torch.manual_seed(0)
    loss = mean_loss(model, ids)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise Difference(f"the gradient of {name} is not finite: gradients")
    if rotary.factors.grad is None or not rotary.factors.grad.abs().sum() > 0:
        raise Difference("no gradient reaches the factors: gradients")
    rotary.factors.grad, rotary.factors = None, rotary.factors.detach()
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    torch.manual_seed(0)
    plain_losses(model, ids).mean().backward()  # type: ignore[no-untyped-call]
    theirs = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    if ours.keys() != theirs.keys():
        raise Difference(f"{min(ours.keys() ^ theirs.keys())} has a gradient in one of two passes: gradients")
    flat = [torch.cat([part.flatten() for part in gradients.values()]) for gradients in (ours, theirs)]
    same(model, flat[0], flat[1], "gradients", length=BEYOND, times=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = mean_loss(model, ids)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    if not losses[2] < losses[0]:
        raise Difference(f"the loss goes from {losses[0]:.3f} to {losses[2]:.3f} in two steps: losses")


def check_export(specimen: Specimen) -> None:
    """Plain transformers gives the logits in memory from an exported folder, below and above the window."""
    for model in (specimen.model, specimen.published):
        if model is None:
            continue
        folder = specimen.folder / "export"
        switch = LengthSwitch(((TARGET, current_scaling(model)),))
        export_checkpoint(model, byte_tokenizer(), switch, folder, card="")
        exported = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for length in (INSIDE, BEYOND):
            same(model, logits(exported, length), logits(model, length), f"{length} tokens' logits", length=length)


def check_gguf(specimen: Specimen) -> None:
    """The exported folder is written as GGUF; what llama.cpp makes of such files is tested with llama.cpp itself."""
    export_gguf(specimen.folder / "extended", specimen.folder / "model.gguf", dtype="float32")


def check_load_extended(specimen: Specimen) -> None:
    """`load_extended` applies each scaling of the switch, with n_hat."""
    model, scaling = specimen.model, specimen.scaling
    assert scaling is not None
    short = RopeScaling(tuple(factor**0.5 for factor in scaling.factors), WINDOW, TARGET, n_hat=4)
    folder = specimen.folder / "extended"
    export_checkpoint(model, byte_tokenizer(), LengthSwitch(((WINDOW, short), (TARGET, scaling))), folder, card="")
    extended = load_extended(folder)
    same(model, logits(extended, BEYOND), logits(model, BEYOND), f"{BEYOND} tokens' logits", length=BEYOND)
    extend(model, short)
    same(model, logits(extended, INSIDE), logits(model, INSIDE), f"{INSIDE} tokens' logits", length=INSIDE)
    extend(model, scaling)


CHECKS: dict[str, Callable[[Specimen], None]] = {
    "loading": check_loading,
    "own scaling": check_own_scaling,
    "YaRN": check_yarn,
    "published YaRN": check_published,
    "loss": check_loss,
    "chunks": check_chunks,
    "decoding": check_decoding,
    "packing": check_packing,
    "training": check_training,
    "export": check_export,
    "load_extended": check_load_extended,
    "GGUF": check_gguf,
}
NEEDED = ("loading", "own scaling", "YaRN")
"""Checks without which the later ones have nothing to begin with."""

_SOURCE = Path(ropewalk.__file__).parent


def _outcome(check: Callable[[Specimen], None], specimen: Specimen) -> Outcome:
    try:
        check(specimen)
    except Difference as difference:
        return Outcome(WRONG, str(difference))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        message = str(error)
        if (
            isinstance(error, ValueError | FileNotFoundError)
            and _SOURCE in Path(frames[-1].filename).parents
            and "\n" not in message
        ):
            return Outcome(LATE, message)
        where = f"{'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno}"
        return Outcome(CRASH, f"{type(error).__name__}: {' '.join(message.split())[:160]} ({where})")
    return Outcome(WORKS)


def examine(model_type: str, folder: Path) -> dict[str, Outcome]:
    """Outcomes of the checks of a model_type's tiny model by name; those that cannot be made are missing."""
    specimen = Specimen(model_type, folder)
    save(tiny_model(model_type), model_type, specimen.checkpoint)
    byte_tokenizer().save_pretrained(specimen.checkpoint)
    result = capability(str(specimen.checkpoint))
    if result.extended:
        return {"capability": Outcome(REFUSED, result.extended)}
    against = {"training": result.trained, "GGUF": result.written_as_gguf}
    against |= dict.fromkeys(("export", "load_extended"), result.exported)
    outcomes = {}
    for name, check in CHECKS.items():
        reason = against.get(name)
        outcomes[name] = Outcome(REFUSED, reason) if reason else _outcome(check, specimen)
        if outcomes[name].kind in (LATE, CRASH) and name in NEEDED:
            break
    return outcomes


def examine_all(model_types: Iterable[str] = MODEL_TYPES) -> dict[str, dict[str, Outcome]]:
    """`examine` for every model_type that is not left out."""
    outcomes = {}
    for model_type in model_types:
        if model_type not in LEFT_OUT:
            with tempfile.TemporaryDirectory() as folder:
                outcomes[model_type] = examine(model_type, Path(folder))
    return outcomes


STEPS = {
    "extended": ("loading", "own scaling", "YaRN", "published YaRN"),
    "evaluated": ("loss", "chunks", "decoding"),
    "trained": ("packing", "training"),
    "exported": ("export", "load_extended"),
    "GGUF": ("GGUF",),
}
"""What users do with a model, and the checks that stand for it."""

INTRODUCTION = """\
# Models

`python tests/zoo.py --write docs/models.md` writes this page. It builds a tiny random model of every causal language
model class of transformers {version} and puts it through loading, extension, losses, training and export, comparing
each with transformers' own forward pass: logits under the checkpoint's own scaling and under YaRN, the losses of whole
passes and of chunks, the tokens of greedy decoding, gradients, and the logits of the exported folder in plain
transformers and in `load_extended`, below and above the original window.

Of {total} model types, {works} work in every respect{partly}. {refused} cannot be extended, for the reasons
below; {left_out} are left out. What does not work is told by `pipelines/show.py` from config.json alone, with
its reason, and refused before any work. GGUF is for models whose rescale factors llama.cpp applies; the page of the
[export](export.md) says more.
"""


def row(model_type: str, outcomes: Mapping[str, Outcome]) -> str:
    """The line of the page's table for a model_type that can be extended at least."""
    cells = ["yes" if all(outcomes[name].kind == WORKS for name in names) else "no" for names in STEPS.values()]
    reasons = sorted({found.reason for name, found in outcomes.items() if found.kind != WORKS and name != "GGUF"})
    cells = [f"`{MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]}`", f"`{model_type}`", *cells, "; ".join(reasons)]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def page(outcomes: Mapping[str, Mapping[str, Outcome]]) -> str:
    """The text of docs/models.md."""
    extended = {name: found for name, found in outcomes.items() if "loading" in found}
    works = [name for name, found in extended.items() if _works(found)]
    refused: dict[str, list[str]] = {}
    for name in outcomes.keys() - extended.keys():
        reason = outcomes[name]["capability"].reason.replace(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name], "the class")
        refused.setdefault(reason.replace(f" of {SLIDING} tokens", ""), []).append(name)
    for name, reason in LEFT_OUT.items():
        refused.setdefault(f"left out: {reason}", []).append(name)
    head = ["class", "`model_type`", *STEPS, "reason"]
    lines = [
        INTRODUCTION.format(
            version=transformers.__version__,
            total=len(MODEL_TYPES),
            works=len(works),
            partly=f", {len(extended) - len(works)} in some" if len(extended) > len(works) else "",
            refused=len(outcomes) - len(extended),
            left_out=len(LEFT_OUT),
        ),
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(row(name, extended[name]) for name in sorted(extended)),
        "\n## Classes that cannot be extended\n",
        "| reason | `model_type` |",
        "|---|---|",
        *(
            f"| {reason} | {', '.join(f'`{name}`' for name in sorted(names))} |"
            for reason, names in sorted(refused.items(), key=lambda item: (-len(item[1]), item[0]))
        ),
    ]
    return "\n".join(lines) + "\n"


def _works(outcomes: Mapping[str, Outcome]) -> bool:
    """Whether a class works in every respect; GGUF is a format for those that llama.cpp computes."""
    return all(outcome.kind == WORKS for name, outcome in outcomes.items() if name != "GGUF")


def faults(outcomes: Mapping[str, Mapping[str, Outcome]]) -> list[str]:
    """A line for each check that a class failed without saying so beforehand."""
    return [
        f"{model_type}, {name}: {outcome.kind}, {outcome.reason}"
        for model_type, found in outcomes.items()
        for name, outcome in found.items()
        if outcome.kind in (LATE, WRONG, CRASH)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_types", nargs="*", default=MODEL_TYPES, help="all by default")
    parser.add_argument("--write", type=Path, help="page to write")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    outcomes = examine_all(arguments.model_types)
    if arguments.write:
        write_text(arguments.write, page(outcomes))
    else:
        print(page(outcomes))
    sys.exit("\n".join(faults(outcomes)) or 0)
