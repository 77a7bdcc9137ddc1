"""A configuration is checked as a whole before any work starts, and a mistake is one line that names the key."""

import ast
import inspect
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from ropewalk import config as schema
from ropewalk.composition import checked, explain, read_overrides, register, section
from ropewalk.config import Config
from ropewalk.consistency import check_measured, check_window
from ropewalk.consistency.values import BENCHMARKS, METHODS, NEEDLES
from tiny_models import tiny_llama
from workspace import ROOT, environment, run_script, write_overrides

CONF = ROOT / "conf"
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "experiment")
CHOICES = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
NEEDED = {
    "corpus=jsonl": ["corpus.path=x"],
    "corpus=text": ["corpus.path=x"],
    "corpus=redpajama_v2": ["corpus.snapshots=[2023-06]"],
    "corpus=mixture": ["+corpus.sources={books: {name: text, path: x}}", "+corpus.weights={books: 1}"],
    "model=hf": ["model.path=x"],
}


def composed(*overrides: str) -> Config:
    return checked(unchecked(*overrides))


def unchecked(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [*overrides, "output=out", "work=work"])


@pytest.fixture(scope="module")
def default() -> DictConfig:
    return unchecked()


# Each mistake with what its message must say: the key, and what is allowed.
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "typo in a key": (["serch.trials=3"], ["unknown key serch", "allowed are", "search"]),
    "typo below a section": (["search.trails=3"], ["unknown key search.trails", "allowed are", "trials"]),
    "typo put in with a plus": (["+model.dtpe=x"], ["unknown key model.dtpe", "allowed are", "dtype"]),
    "unknown group": (["serch=fast"], ["unknown key serch", "allowed are", "search"]),
    "unknown choice": (
        ["search=quick"],
        ["search has no choice quick", "cmaes, evolution, fast, gradient, hybrid, longrope2, paper, random, tpe"],
    ),
    "unknown experiment": (
        ["experiment=big"],
        ["experiment has no choice big", "demo, full, llama2_7b_2048k, llama3_8b_128k"],
    ),
    "wrong type": (["search.trials=many"], ["search.trials", "many", "Integer"]),
    "part of a number": (["search.trials=1.5"], ["search.trials", "1.5", "Integer"]),
    "wrong type in a list": (["evaluate.lengths=[a]"], ["evaluate.lengths[0]", "Integer"]),
    "no list": (["evaluate.lengths=5"], ["evaluate.lengths", "list"]),
    "nothing": (["seed=null"], ["seed", "not Optional"]),
    "left out": (["model=hf"], ["model.path must be given"]),
}
V2 = ["corpus.name=redpajama_v2", "corpus.url=http://a.org"]
CONTRADICTIONS: dict[str, tuple[list[str], list[str]]] = {
    "unknown corpus": (["corpus.name=web"], ["corpus.name", "stdlib, jsonl, text, redpajama_v1", "web"]),
    "no path": (["corpus.name=jsonl", "corpus.path=null"], ["corpus.path", "name the files", "jsonl"]),
    "no address": (["corpus.name=redpajama_v1", "corpus.url=null"], ["corpus.url", "urls.txt"]),
    "no snapshots": (V2, ["corpus.snapshots", "2023-06"]),
    "no such language": ([*V2, "corpus.languages=[xx]"], ["corpus.languages", "en, de, fr, es, it", "xx"]),
    "no sources": (["corpus.name=mixture"], ["corpus.sources must name", "found none"]),
    "tokens of no mixture": (["corpus.mixture_tokens=5"], ["corpus.mixture_tokens needs corpus.weights"]),
    "no training documents": (
        ["corpus.test_share=0.9"],
        ["corpus.search_share and corpus.test_share", "below 1", "0.15, 0.9"],
    ),
    "no test documents": (["corpus.test_share=0"], ["corpus.search_share and corpus.test_share", "above 0"]),
    "documents shorter than what is read": (["corpus.long_tokens=1000"], ["corpus.long_tokens", "1000 and 16384"]),
    "too few long documents": (["corpus.least_long_documents=3"], ["corpus.least_long_documents", "found 3"]),
    "share above one": (["finetune.recall_share=1.5"], ["finetune.recall_share", "between 0 and 1", "1.5"]),
    "unknown dtype": (["model.dtype=int8"], ["model.dtype", "float32, bfloat16, float16", "int8"]),
    "window above the target": (
        ["model.original_length=4096"],
        ["road.first_target", "above the model's window", "2048 and 4096"],
    ),
    "second target below the first": (
        ["road.second_target=1024"],
        ["road.second_target must be above road.first_target", "1024 and 2048"],
    ),
    "search for another target": (
        ["road.search_first.lengths=[1024]"],
        ["road.search_first.lengths", "end at", "2048"],
    ),
    "second search below the first target": (
        ["road.search_second={lengths: [512,16384], trials: null, gradient_steps: null}"],
        ["road.search_second.lengths", "above road.first_target 2048"],
    ),
    "lengths that fall": (
        ["road.search_second={lengths: [8192,4096,16384]}"],
        ["road.search_second.lengths", "rising order"],
    ),
    "recovery of long inputs": (["road.recover.lengths=[4096]"], ["road.recover.lengths", "below", "2048"]),
    "trials for other lengths": (
        ["road.search_second.trials=[0,0]"],
        ["road.search_second.trials", "each of road.search_second.lengths", "found [0, 0]"],
    ),
    "steps for other lengths": (["road.recover.gradient_steps=[]"], ["road.recover.gradient_steps", "found []"]),
    "more parents than members": (["search.parents=40"], ["search.parents", "search.initial", "40 and 8"]),
    "too few pairs for a race": (
        ["search.race.blocks=3"],
        ["search.race.blocks times the documents of each search", "at least 32", "found 12"],
    ),
    "no documents of the target length": (["search.fitness.lengths=[0.5]"], ["search.fitness.lengths", "hold 1.0"]),
    "a weight without a length": (["search.fitness.weights=[1,2]"], ["search.fitness.weights", "found [1.0, 2.0]"]),
    "a race at the length itself": (["search.race.shorter=[1.0]"], ["search.race.shorter", "below 1", "[1.0]"]),
    "a race at less than the answers": (
        ["search.fitness.needles=2", "search.race.shorter=[0.5]"],
        ["search.race.shorter must be empty with search.fitness.needles", "[0.5]"],
    ),
    "a race at more than the length": (["search.race.shorter=[2]"], ["search.race.shorter", "shares", "[2.0]"]),
    "a password in the storage": (
        ["search.storage=postgresql+psycopg://user:secret@host/name"],
        ["search.storage", "PGPASSWORD"],
    ),
    "unknown sampler": (["search.sampler=nsga"], ["search.sampler", "evolution, paper, start_tokens", "nsga"]),
    "attention factors upside down": (["search.attention_factor=[2,1]"], ["search.attention_factor", "lowest"]),
    "negative count": (["search.gradient_steps=-1"], ["search.gradient_steps", "negative", "-1"]),
    "no rows": (["finetune.first.rows=0"], ["finetune.first.rows", "at least 1"]),
    "no learning rate": (["finetune.second.learning_rate=0"], ["finetune.second.learning_rate", "above 0"]),
    "unknown decay": (["finetune.first.decay=cubic"], ["finetune.first.decay", "linear, constant", "cubic"]),
    "unknown precision": (["finetune.precision=fp8"], ["finetune.precision", "bf16-mixed", "fp8"]),
    "training that shortens": (["finetune.first.length=4096"], ["finetune.first.length", "4096, 2048"]),
    "a step that shortens": (
        ["finetune.before_second=[{length: 512, steps: 1, rows: 1, learning_rate: 1}]"],
        ["finetune.first.length", "finetune.before_second[0].length", "1024, 512", "must not shrink"],
    ),
    "a batch that does not divide": (
        ["finetune.rows_at_once=3"],
        ["finetune.rows_at_once must divide finetune.first.rows 8", "found 3"],
    ),
    "factors of no search": (
        ["finetune.first.scaling_length=512"],
        ["finetune.first.scaling_length", "among road.search_first.lengths [2048]", "512"],
    ),
    "an unknown scaling": (["finetune.first.scaling=abc"], ["finetune.first.scaling", "searched, none, pi", "abc"]),
    "a training for another length": (
        ["finetune.second={scaling: pi, scaling_length: 512}"],
        ["finetune.second.scaling_length must be road.first_target 2048"],
    ),
    "unknown optimizer": (["finetune.optimizer=sgd"], ["finetune.optimizer", "adamw_8bit", "sgd"]),
    "unknown activations": (["finetune.activations=drop"], ["finetune.activations", "keep, recompute, offload"]),
    "windows that do not fit": (
        ["finetune.short_share=0.5", "finetune.first.length=1000", "model.original_length=256"],
        ["finetune.first.length must be a multiple", "256", "found 1000"],
    ),
    "training beyond the target": (["finetune.second.length=4096"], ["finetune.second.length", "road.first_target"]),
    "several devices without a strategy": (["parallel.devices=2"], ["parallel.strategy", "ddp or fsdp", "2 devices"]),
    "groups of unequal size": (
        ["parallel.strategy=fsdp", "parallel.devices=8", "parallel.context=3"],
        ["parallel.context must divide", "found 3 and 8"],
    ),
    "rows that not every device gets": (
        ["parallel.strategy=ddp", "parallel.devices=3"],
        ["finetune.first.rows", "multiple of the 3 groups", "found 8"],
    ),
    "a length that devices cannot share": (
        ["parallel.strategy=fsdp", "parallel.devices=8", "parallel.context=8", "finetune.second.length=2044"],
        ["finetune.second.length", "multiple of 16", "found 2044"],
    ),
    "a precision that cannot be sharded": (
        ["parallel.strategy=fsdp", "finetune.precision=16-mixed"],
        ["finetune.precision", "bf16-mixed", "found 16-mixed"],
    ),
    "an attention that there is not": (["parallel.attention=flash"], ["parallel.attention", "ring", "found flash"]),
    "packed documents around a ring": (
        ["parallel.attention=ring", "finetune.short_share=0.5"],
        ["finetune.short_share", "parallel.attention=ring", "take auto"],
    ),
    "a sliding window around a ring": (
        ["parallel.attention=ring", "model.keep_sliding_window=true"],
        ["model.keep_sliding_window", "parallel.attention=ring"],
    ),
    "trained norms of another dtype than the adapters": (
        ["parallel.strategy=fsdp", "model.dtype=bfloat16", "finetune.lora.rank=4", "finetune.lora.norms=true"],
        ["finetune.lora.norms", "finetune.precision=bf16-true", "found auto"],
    ),
    "base model at other lengths": (
        ["evaluate.base_lengths=[256,2048,4096]"],
        ["evaluate.base_lengths", "among evaluate.lengths"],
    ),
    "fewer trials than depths": (["evaluate.passkey_trials=5"], ["evaluate.passkey_trials", "passkey_depths"]),
    "a cycle without a rate": (["walker.cycles=[5]"], ["walker.learning_rates", "each of the 1 walker.cycles"]),
    "unknown needles": (["evaluate.needles=[double]"], ["evaluate.needles", "single, multi_key", "double"]),
    "fewer needles than depths": (["evaluate.needle_trials=2"], ["evaluate.needle_trials", "needle_depths"]),
    "needle lengths that fall": (["evaluate.needle_lengths=[512,256]"], ["evaluate.needle_lengths", "rising order"]),
    "stride beyond the window": (["evaluate.stride=512"], ["evaluate.stride", "256", "left out"]),
    "chunk of no tokens": (["evaluate.chunk_tokens=0"], ["evaluate.chunk_tokens", "at least 1"]),
    "unknown benchmark": (["evaluate.benchmarks.tasks=[glue]"], ["evaluate.benchmarks.tasks", "hellaswag", "glue"]),
    "rows that devices cannot share": (
        ["parallel.strategy=ddp", "parallel.devices=3"],
        ["finetune.first.rows", "multiple of the 3 groups"],
    ),
    "subsets of what is read across documents": (
        ["finetune.across_documents=true", "finetune.second.subsets=[book]"],
        ["finetune.second.subsets", "across_documents", "book"],
    ),
    "training of no steps": (["walker.cycles=[]"], ["walker.cycles", "steps from 1"]),
    "unknown method": (["rope.methods=[pi,abc]"], ["rope.methods", ", ".join(METHODS), "abc"]),
    "a rival that is not trained": (["rivals.methods=[pi,abf]"], ["rivals.methods", "pi, ntk, yarn", "abf"]),
    "a rival twice": (["rivals.methods=[pi,pi]"], ["rivals.methods", "each once"]),
    "retrieval beyond the documents": (
        ["evaluate.retrieval.lengths=[2048,32768]"],
        ["evaluate.retrieval.lengths", "above corpus.long_tokens 16384", "32768"],
    ),
    "retrieval of unknown tasks": (
        ["evaluate.retrieval.tasks=[needle]"],
        ["evaluate.retrieval.tasks", "passkey, single", "needle"],
    ),
    "retrieval of no task": (
        ["evaluate.retrieval.tasks=[]", "evaluate.retrieval.lengths=[512]"],
        ["evaluate.retrieval.tasks", "must not be empty"],
    ),
    "a needle task twice": (["evaluate.needles=[single,single]"], ["evaluate.needles", "each once"]),
    "needles in documents that are too short": (
        ["evaluate.needles=[multi_key_text]", "evaluate.needle_lengths=[32768]"],
        ["evaluate.needle_lengths", "above corpus.long_tokens 16384 for multi_key_text in evaluate.needles"],
    ),
    "retrieval of no chunks": (
        ["evaluate.retrieval.chunk_tokens=1"],
        ["evaluate.retrieval.chunk_tokens", "at least 2"],
    ),
    "two factor sets": (["export.short_factor=none"], ["export.short_factor", "same"]),
}


def one_line(message: str, *parts: str) -> None:
    assert len(message.strip().splitlines()) == 1, message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("mistake", CONTRADICTIONS)
def test_a_contradiction_is_one_line_that_names_the_key_and_what_is_allowed(default: DictConfig, mistake: str) -> None:
    overrides, parts = CONTRADICTIONS[mistake]
    with pytest.raises(ValueError, match=r"^configuration: ") as raised:
        checked(OmegaConf.merge(default, OmegaConf.from_dotlist(overrides)))
    one_line(str(raised.value), *parts)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_compose_refuses_a_mistake_in_overrides_yaml_and_writes_nothing(scratch: Path, mistake: str) -> None:
    overrides, parts = MISTAKES[mistake]
    write_overrides(scratch, *overrides)
    with pytest.raises(SystemExit) as raised:
        run_script("compose")
    one_line(str(raised.value.code), "compose: configuration: ", *parts)
    assert {path.name for path in scratch.iterdir()} == {"models", "overrides.yaml"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_script_refuses_a_mistake_on_the_command_line_and_does_nothing(scratch: Path, mistake: str) -> None:
    overrides, parts = MISTAKES[mistake]
    with pytest.raises(SystemExit) as raised:
        run_script("base", *overrides)
    one_line(str(raised.value.code), "base: configuration: ", *parts)
    assert not [path for path in scratch.rglob("*") if path.is_file() and "models" not in path.parts]


@pytest.mark.parametrize("script", ["compose", "base"])
def test_every_way_in_checks_for_contradictions(scratch: Path, script: str) -> None:
    overrides, parts = CONTRADICTIONS["second target below the first"]
    write_overrides(scratch, *overrides)
    with pytest.raises(SystemExit) as raised:
        run_script(script, *(overrides if script == "base" else []))
    one_line(str(raised.value.code), *parts)


def test_compose_knows_the_window_of_the_checkpoint(scratch: Path) -> None:
    write_overrides(scratch, "evaluate.lengths=[512,2048]", "evaluate.base_lengths=[512,2048]")
    with pytest.raises(SystemExit, match=r"evaluate\.lengths must hold the model's window 256, found \[512, 2048\]"):
        run_script("compose")
    config = composed()
    with pytest.raises(ValueError, match=r"road\.first_target must be above the model's window, found 2048 and 4096"):
        check_window(config, 4096)
    check_window(config, 256)
    with pytest.raises(ValueError, match=r"evaluate\.lengths must hold the model's window 300, found \[256, 512, "):
        check_measured(config, 300)
    config.evaluate.base_lengths = [256, 512]
    with pytest.raises(
        ValueError, match=r"evaluate\.base_lengths must hold road\.first_target 2048, found \[256, 512\]"
    ):
        check_measured(config, 256)


@pytest.mark.parametrize("script", ["compose", "base"])
def test_a_mistake_ends_a_process_with_code_1_and_one_line(scratch: Path, script: str) -> None:
    write_overrides(scratch, "search.trails=3")
    command = [sys.executable, str(ROOT / "pipelines" / f"{script}.py")]
    command += ["search.trails=3"] if script == "base" else []
    found = subprocess.run(
        command, cwd=scratch, env=environment(ROOT), capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 1
    assert found.stdout == ""
    one_line(found.stderr, f"{script}: configuration: unknown key search.trails; allowed are name, sampler")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "must hold a list"),
        ("override: []", "must hold a list"),
        ("overrides: search=fast", "must hold a list"),
        ("overrides: [1]", "must hold a list"),
        ("overrides: [", "is not YAML"),
    ],
)
def test_an_overrides_file_without_a_list_is_named(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "overrides.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=part) as raised:
        read_overrides(path)
    one_line(str(raised.value), str(path))


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["corpus.buckets=[tail]"], r"corpus\.quality needs quality signals, which the bucket tail"),
        (["corpus.quality.rps_doc_word_count=[1]"], r"corpus\.quality\.rps_doc_word_count must be the lowest and the"),
        (["+corpus.weights={a: -1}"], r"corpus\.weights must not be negative"),
        (["corpus.name=mixture", "+corpus.sources={a: {name: mixture}}"], r"corpus\.sources\.a\.name must be one of"),
    ],
)
def test_a_contradiction_inside_a_mapping_names_its_key(overrides: list[str], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        composed("corpus=redpajama_v2", "corpus.snapshots=[2023-06]", *overrides)


def test_shots_are_numbers_by_task() -> None:
    for shots in ("{mmlu: -1}", "{glue: 1}"):
        with pytest.raises(ValueError, match=r"evaluate\.benchmarks\.shots must be numbers from 0 by task"):
            composed(f"+evaluate.benchmarks.shots={shots}")


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_every_group_composes(choice: str) -> None:
    assert composed(choice, *NEEDED.get(choice, [])).seed == 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    config = composed(f"experiment={name}")
    # Recipes for the walker leave its window to its checkpoint.
    window = config.model.original_length or 256
    check_window(config, window)
    check_measured(config, window)


def test_the_default_first_search_has_100_trials_in_5_generations_at_least(default: DictConfig) -> None:
    search = checked(default).search
    assert min(search.trials, search.patience or search.trials) >= 100
    assert search.initial + 4 * search.children < 100


def test_a_resolved_configuration_reads_back_as_the_same(scratch: Path) -> None:
    write_overrides(scratch, "experiment=smoke", "seed=7")
    run_script("compose")
    found = OmegaConf.load(scratch / "resolved.yaml")
    names = [item.name for item in fields(Config)]
    again = checked(OmegaConf.create({name: found[name] for name in names}))
    expected = composed("experiment=smoke", "seed=7")
    expected.output, expected.corpus.fingerprint = "results", again.corpus.fingerprint
    assert section(again, *names) == section(expected, *names)
    assert again.corpus.fingerprint is not None


def test_compose_prints_the_configuration(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_overrides(scratch, "seed=5")
    run_script("compose", "--cfg", "job")
    assert "seed: 5" in capsys.readouterr().out
    assert not (scratch / "resolved.yaml").exists()


def test_needles_and_benchmarks_are_those_that_evaluate_has() -> None:
    from ropewalk.evaluate.benchmarks import SHOTS
    from ropewalk.evaluate.needles import FAMILIES

    assert NEEDLES == FAMILIES
    assert set(BENCHMARKS) == set(SHOTS)


@pytest.mark.parametrize("choice", ["all", "none", "paper", "quick"])
def test_every_choice_of_benchmarks_composes(choice: str) -> None:
    config = composed(f"evaluate/benchmarks={choice}", "evaluate=needles")
    assert config.evaluate.benchmarks.name == choice
    assert config.evaluate.stride == 128


def test_methods_are_those_that_evaluate_compares() -> None:
    from ropewalk.evaluate.road import Road

    assert METHODS == Road.ALL


def test_an_unforeseen_error_is_told_as_it_is() -> None:
    assert explain(ValueError("one\n  two")) == "configuration: one two"


OBVIOUS = {"name", "seed", "steps", "length", "rows", "learning_rate", "decay", "precision", "first", "second"}
OBVIOUS |= {"dtype", "warmup_steps", "gradient_clip", "weight_decay", "checkpoint_every", "experiment", "trials"}


def documented(kind: Any) -> set[str]:
    """Fields with a docstring under them, as `inspect` cannot see."""
    classes = [base for base in kind.__mro__ if is_dataclass(base)]
    bodies = [body for base in classes for body in ast.parse(inspect.getsource(base)).body]
    pairs = [pair for body in bodies if isinstance(body, ast.ClassDef) for pair in pairwise(body.body)]
    return {
        one.target.id
        for one, two in pairs
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(two, ast.Expr)
    }


@pytest.mark.parametrize(
    "kind", [kind for _, kind in inspect.getmembers(schema, inspect.isclass) if is_dataclass(kind)]
)
def test_every_key_is_documented_or_obvious(kind: Any) -> None:
    sections = {item.name for item in fields(Config)}
    left = {item.name for item in fields(kind)} - documented(kind) - OBVIOUS - sections
    assert not left, f"say in {kind.__name__} what {', '.join(sorted(left))} mean"


def test_the_guides_example_of_lengths_composes(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guide = (ROOT / "docs" / "your-own-model.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(overrides:\n.*?)^```", guide, re.MULTILINE | re.DOTALL)
    tiny_llama(max_position_embeddings=4096).save_pretrained(scratch / "my-model")
    (scratch / "my-texts").mkdir()
    (scratch / "my-texts" / "a.txt").write_text("a text")
    (scratch / "overrides.yaml").write_text(block.replace("../", ""))
    run_script("compose", "--cfg", "job")
    assert "first_target: 32768" in capsys.readouterr().out
