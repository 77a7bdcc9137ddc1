"""Which way of fine-tuning is worth its cost (`make bench-finetune`): the extension of one model, once for each way.

The walker lies in the repository, and its documents are Python's standard library. Any other model comes with a folder
of texts, one document each, which are split by their names:

    python benchmarks/finetune/quality.py --model babyllama=PATH --texts FOLDER

or ROPEWALK_BENCH_MODEL=babyllama=PATH and ROPEWALK_BENCH_TEXTS=FOLDER. From 256 tokens to 2,048 with training, in steps
of 1,024 and 2,048 tokens, and to 16,384 under the continuation of the factors, without a second search. Perplexity is
that of one pass over the first tokens of all test documents of 16,384 tokens, the same at every length.

Ways: plain; mixed (a quarter of the rows is short and read under the original RoPE); learned (factors trained with the
weights); both; recall (35 % of the rows are recall documents); far (LongCE: tokens count by what the far text gives);
recall and far. All see the same number of tokens, and no query scales are searched. The walker, which repeats keys, is
also asked for passkeys, 60 at each length, half of them in each form. Each stage resumes where it was stopped, and rows
that are there are not measured again.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from model import add_options, chosen
from record import write_results
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.passkey import passkey_accuracy
from ropewalk.evaluate.perplexity import DocumentSet, perplexities
from ropewalk.evaluate.prompt_sets import Draw
from ropewalk.evaluate.prompts import PASSKEY_FORMS
from ropewalk.files import read_json
from ropewalk.models.base import BaseModel, load_model, load_tokenizer, trained_under
from ropewalk.rope import LengthSwitch, RopeScaling

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "finetune" / "quality.json"
WORK = ROOT / "work" / "bench-finetune"
WINDOW, TARGET = 256, 2048
LENGTHS = (2048, 4096, 8192, 16_384)
COMMON = ("prepare", "base", "search_first")
OWN = ("finetune_first", "finetune_second", "search_second", "recover")
PASSKEY_LENGTHS, TRIALS = (1024, 2048, 4096), 30
STEPS = (
    "finetune.first.steps=80",
    "finetune.second.steps=80",
    "finetune.control=false",
    "finetune.recall_share=0",
    "search.query_scales=none",
)
UNMIXED = "finetune.short_share=0"
"""Mixed windows are the default without query scales."""
WAYS: dict[str, tuple[str, ...]] = {
    "plain": (UNMIXED,),
    "mixed": ("finetune.short_share=0.25",),
    "learned": (UNMIXED, "finetune.learn_factors=true"),
    "both": ("finetune.short_share=0.25", "finetune.learn_factors=true"),
    "recall": (UNMIXED, "finetune.recall_share=0.35"),
    "far": (UNMIXED, "finetune.long_context_weight=5.0"),
    "recall and far": (UNMIXED, "finetune.recall_share=0.35", "finetune.long_context_weight=5.0"),
}


def stage(name: str, folder: Path, overrides: tuple[str, ...]) -> float:
    """Run a stage of the extension in ``folder``, and return its seconds."""
    begun = time.perf_counter()
    command = [sys.executable, f"pipelines/{name}.py", f"output={folder}", f"inputs={folder}", *STEPS, *overrides]
    subprocess.run(command, check=True, cwd=ROOT)
    return time.perf_counter() - begun


def once(name: str, folder: Path, overrides: tuple[str, ...]) -> float:
    """`stage`, unless it was run before; the seconds that it took then."""
    done = folder / f"{name}.seconds"
    if not done.is_file():
        seconds = stage(name, folder, overrides)
        done.write_text(str(seconds))
    return float(done.read_text())


def begun_from(common: Path, folder: Path) -> None:
    """A folder for a way of its own, with what the common stages found."""
    if not folder.is_dir():
        aside = folder.with_suffix(".new")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        (aside / "tokens").symlink_to(common / "tokens")
        shutil.copy(common / "base.json", aside)
        shutil.copytree(common / "factors", aside / "factors")
        aside.rename(folder)


def measured(folder: Path, *, passkeys: bool) -> dict[str, float]:
    """Perplexity by length, and in the original window before and after recovery; and the share of passkeys found."""
    tuned = folder / "checkpoints" / "finetune_second"
    switch = LengthSwitch.read(folder / "factors" / "recovered.json")
    trained = trained_under(tuned)
    assert trained is not None
    documents = DocumentSet.of("all", TokenStore(folder / "tokens" / "test"), length=max(LENGTHS), documents=None)
    base = load_model(BaseModel.read(folder / "base.json").path)
    plain = RopeScaling((1.0,) * len(trained.factors), WINDOW, TARGET, method="none")
    found = {"base_perplexity_256": perplexities(base, plain, documents, [WINDOW])[WINDOW]}
    model = load_model(str(tuned))
    for length in LENGTHS:
        found[f"perplexity_{length}"] = perplexities(model, switch.for_length(length), documents, [length])[length]
    found["perplexity_256_before_recovery"] = perplexities(model, trained, documents, [WINDOW])[WINDOW]
    recovered = switch.for_length(WINDOW)
    found["perplexity_256_recovered"] = perplexities(model, recovered, documents, [WINDOW])[WINDOW]
    tokenizer, store = load_tokenizer(BaseModel.read(folder / "base.json").path), TokenStore(folder / "tokens" / "test")
    for length in PASSKEY_LENGTHS if passkeys else ():
        for family, form in PASSKEY_FORMS.items():
            prompts = Draw(family, length, TRIALS, 10, 0).prompts(tokenizer, store)
            rows = passkey_accuracy(model, tokenizer, switch, prompts)
            found[f"passkeys_{form}_{length}"] = sum(row["correct"] for row in rows) / TRIALS
    return {**found, "documents": documents.documents}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    name, path, texts = chosen(parser, options)
    overrides: tuple[str, ...] = ("extension.way=trained", "extension.second_target=2048")
    if path:
        # Few and long documents.
        split = ("corpus.search_share=0.25", "corpus.test_share=0.35", "corpus.min_long_documents=4")
        read = ("evaluate.long_documents=4", "search.documents=5")
        overrides = ("model=hf", f"model.path={path}", "corpus=text", f"corpus.path={texts}", *split, *read)
    common = WORK / name / "common"
    common.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = read_json(options.results)["rows"] if options.results.is_file() else []
    for way in options.ways:
        if any((row["model"], row["way"]) == (name, way) for row in rows):
            continue
        for part in COMMON:
            once(part, common, overrides)
        folder = WORK / name / way
        begun_from(common, folder)
        seconds = {part: once(part, folder, (*overrides, *WAYS[way])) for part in OWN}
        trained = read_json(folder / "metrics" / "finetune_second.json")["finetune_second"]
        row = {
            "model": name,
            "way": way,
            "train_seconds": round(seconds["finetune_first"] + seconds["finetune_second"], 1),
            "search_seconds": round(seconds["search_second"] + seconds["recover"], 1),
            "tokens_per_s": round(trained["tokens_per_second"], 1),
            "peak_mib": round(trained["peak_mib"], 1),
            **measured(folder, passkeys=name == "walker"),
        }
        rows.append(row)
        write_results(options.results, rows)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
