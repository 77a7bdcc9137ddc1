"""A configuration is checked as a whole before any work starts, and a mistake is one line that names the key."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from ropewalk import composition
from ropewalk import config as schema
from ropewalk.composition import checked, explain, read_overrides, register, section, with_demo
from ropewalk.config import Config, names
from ropewalk.consistency import check_measured, check_window
from ropewalk.rope import methods
from tiny_models import tiny_gpt2, tiny_llama, tiny_qwen2
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
    "model=hf": [f"model.path={ROOT / 'models' / 'walker'}"],
}


def composed(*overrides: str) -> Config:
    return checked(unchecked(*overrides))


def unchecked(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [*with_demo(overrides), "output=out", "work=work"])


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
    "a type that a choice of a group cannot have": (["evaluate=[1]"], ["evaluate=[1] cannot be applied"]),
    "an interpolation to a wrong type": (
        ["extension.recover.gradient_steps=${seed}"],
        ["extension.recover.gradient_steps must be a list, found 0"],
    ),
    "a value that needs quotes": (["model.path=a=b"], ["model.path=a=b", "quote its value: model.path='a=b'"]),
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
    "an experiment without a name": (["tracking.experiment=' '"], ["tracking.experiment", "must be a name"]),
    "a registered model that is a path": (["push.mlflow=a/b"], ["push.mlflow", "without / and :", "a/b"]),
    "no test documents": (["corpus.test_share=0"], ["corpus.search_share and corpus.test_share", "above 0"]),
    "documents shorter than what is read": (["corpus.long_tokens=1000"], ["corpus.long_tokens", "1000 and 16384"]),
    "too few long documents": (["corpus.min_long_documents=3"], ["corpus.min_long_documents", "found 3"]),
    "long documents where every row is from one": (
        ["finetune.long_document_share=0.5"],
        ["finetune.long_document_share needs finetune.across_documents or corpus.across_documents", "0.5"],
    ),
    "share above one": (["finetune.recall_share=1.5"], ["finetune.recall_share", "between 0 and 1", "1.5"]),
    "unknown dtype": (["model.dtype=int8"], ["model.dtype", "float32, bfloat16, float16", "int8"]),
    "window above the target": (
        ["model.original_length=4096"],
        ["extension.target", "above the model's window", "2048 and 4096"],
    ),
    "second target below the first": (
        ["extension.second_target=1024"],
        ["extension.second_target must be above extension.target", "1024 and 2048"],
    ),
    "search for another target": (
        ["extension.search_first.lengths=[1024]"],
        ["extension.search_first.lengths", "end at", "2048"],
    ),
    "second search below the first target": (
        ["extension.search_second={lengths: [512,16384], trials: null, gradient_steps: null}"],
        ["extension.search_second.lengths", "above extension.target 2048"],
    ),
    "lengths that fall": (
        ["extension.search_second={lengths: [8192,4096,16384]}"],
        ["extension.search_second.lengths", "rising order"],
    ),
    "recovery of long inputs": (["extension.recover.lengths=[4096]"], ["extension.recover.lengths", "below", "2048"]),
    "trials for other lengths": (
        ["extension.search_second.trials=[0,0]"],
        ["extension.search_second.trials", "each of extension.search_second.lengths", "found [0, 0]"],
    ),
    "steps for other lengths": (
        ["extension.recover.gradient_steps=[]"],
        ["extension.recover.gradient_steps", "found []"],
    ),
    "more parents than members": (
        ["search.num_parents=40"],
        ["search.num_parents", "search.initial_population", "40 and 8"],
    ),
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
    "no rows": (["finetune.first.batch_size=0"], ["finetune.first.batch_size", "at least 1"]),
    "no learning rate": (["finetune.second.learning_rate=0"], ["finetune.second.learning_rate", "above 0"]),
    "unknown decay": (["finetune.first.decay=cubic"], ["finetune.first.decay", "linear, constant", "cubic"]),
    "unknown precision": (["finetune.precision=fp8"], ["finetune.precision", "bf16-mixed", "fp8"]),
    "training that shortens": (["finetune.first.length=4096"], ["finetune.first.length", "4096, 2048"]),
    "a step that shortens": (
        ["finetune.before_second=[{length: 512, steps: 1, batch_size: 1, learning_rate: 1}]"],
        ["finetune.first.length", "finetune.before_second[0].length", "1024, 512", "must not shrink"],
    ),
    "a batch that does not divide": (
        ["finetune.micro_batch_size=3"],
        ["finetune.micro_batch_size must divide finetune.first.batch_size 8", "found 3"],
    ),
    "factors of no search": (
        ["finetune.first.scaling_length=512"],
        ["finetune.first.scaling_length", "among extension.search_first.lengths [2048]", "512"],
    ),
    "an unknown scaling": (["finetune.first.scaling=abc"], ["finetune.first.scaling", "searched, none, pi", "abc"]),
    "a training for another length": (
        ["finetune.second={scaling: pi, scaling_length: 512}"],
        ["finetune.second.scaling_length must be extension.target 2048"],
    ),
    "unknown optimizer": (["finetune.optimizer=sgd"], ["finetune.optimizer", "adamw_8bit", "sgd"]),
    "unknown activations": (
        ["finetune.activation_checkpointing=drop"],
        ["finetune.activation_checkpointing", "none, full, offload"],
    ),
    "windows that do not fit": (
        ["finetune.short_share=0.5", "finetune.first.length=1000", "model.original_length=256"],
        ["finetune.first.length must be a multiple", "256", "found 1000"],
    ),
    "training beyond the target": (
        ["finetune.second.length=4096"],
        ["finetune.second.length", "extension.target"],
    ),
    "several devices without a strategy": (["parallel.devices=2"], ["parallel.strategy", "ddp or fsdp", "2 devices"]),
    "groups of unequal size": (
        ["parallel.strategy=fsdp", "parallel.devices=8", "parallel.context=3"],
        ["parallel.context must divide", "found 3 and 8"],
    ),
    "rows that not every device gets": (
        ["parallel.strategy=ddp", "parallel.devices=3"],
        ["finetune.first.batch_size", "multiple of the 3 groups", "found 8"],
    ),
    "a length that devices cannot share": (
        ["parallel.strategy=fsdp", "parallel.devices=8", "parallel.context=8", "finetune.second.length=2044"],
        ["finetune.second.length", "multiple of 16", "found 2044"],
    ),
    "8 bits under fsdp": (
        ["parallel.strategy=fsdp", "finetune.optimizer=adamw_8bit"],
        ["finetune.optimizer", "adamw_fused under fsdp", "adamw_8bit"],
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
    "short contexts of rows in slices": (
        ["parallel.strategy=ddp", "parallel.devices=2", "parallel.context=2", "finetune.long_context_weight=5"],
        ["finetune.long_context_weight needs whole rows on a device", "found parallel.context=2"],
    ),
    "a sliding window around a ring": (
        ["parallel.attention=ring", "model.keep_sliding_window=true"],
        ["model.keep_sliding_window", "parallel.attention=ring"],
    ),
    "weights trained in half precision": (
        ["finetune.precision=bf16-true"],
        ["finetune.precision", "bf16-mixed", "found bf16-true"],
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
        ["finetune.first.batch_size", "multiple of the 3 groups"],
    ),
    "subsets of what is read across documents": (
        ["finetune.across_documents=true", "finetune.second.subsets=[book]"],
        ["finetune.second.subsets", "across_documents", "book"],
    ),
    "training of no steps": (["walker.cycles=[]"], ["walker.cycles", "steps from 1"]),
    "unknown method": (["rope.methods=[pi,abc]"], ["rope.methods", ", ".join(names.methods()), "abc"]),
    "a trained baseline that is not trained": (
        ["baselines.methods=[pi,abf]"],
        ["baselines.methods", "pi, ntk, yarn", "abf"],
    ),
    "a trained baseline twice": (["baselines.methods=[pi,pi]"], ["baselines.methods", "each once"]),
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
    "unknown type of weights": (["export.dtype=int8"], ["export.dtype", "auto, float32, bfloat16, float16", "int8"]),
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
    with pytest.raises(ValueError, match=r"extension\.target must be above the model's window, found 2048 and 4096"):
        check_window(config, 4096)
    check_window(config, 256)
    with pytest.raises(ValueError, match=r"evaluate\.lengths must hold the model's window 300, found \[256, 512, "):
        check_measured(config, 300)
    config.evaluate.base_lengths = [256, 512]
    with pytest.raises(
        ValueError, match=r"evaluate\.base_lengths must hold extension\.target 2048, found \[256, 512\]"
    ):
        check_measured(config, 256)


@pytest.mark.parametrize(
    ("build", "overrides", "parts"),
    [
        (tiny_gpt2, (), ("GPT2LMHeadModel has no rotary position embedding",)),
        (tiny_qwen2, ("export.gguf=float16",), ("cannot be written as GGUF", "no rescale factors", "qwen2")),
    ],
)
def test_compose_refuses_what_cannot_be_done_with_the_model(
    scratch: Path, build: Callable[..., Any], overrides: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    build().save_pretrained(scratch / "base")
    write_overrides(scratch, "model=hf", "model.path=base", *overrides)
    with pytest.raises(SystemExit) as raised:
        run_script("compose")
    one_line(str(raised.value.code), "model.path base", *parts)


@pytest.mark.parametrize("script", ["compose", "base"])
def test_a_mistake_ends_a_process_with_code_1_and_one_line(scratch: Path, script: str) -> None:
    write_overrides(scratch, "search.trails=3")
    command = [sys.executable, str(ROOT / "pipelines" / f"{script}.py")]
    command += ["search.trails=3"] if script == "base" else []
    completed = subprocess.run(
        command, cwd=scratch, env=environment(ROOT), capture_output=True, text=True, timeout=120, check=False
    )
    assert completed.returncode == 1
    assert completed.stdout == ""
    one_line(completed.stderr, f"{script}: configuration: unknown key search.trails; allowed are name, sampler")


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


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seed=???", "seed must be given"),
        ("search.step=???", "search.step must be given"),
        ("search.race=???", "search.race must be given"),
        ("evaluate.lengths=[256,???]", "evaluate.lengths[1] must be given"),
        ("corpus.languages=0.5", "corpus.languages: Invalid value assigned: float is not a ListConfig, list or tuple."),
        ("corpus.sources.languages=0.5", "unknown key corpus.sources.languages; a key is added to a mapping by"),
        ("+corpus.sources={a: 1}", "corpus.sources.a: Invalid type assigned: int is not a subclass of SourceConfig"),
        ("+corpus.sources={a: {nam: text}}", "unknown key corpus.sources.a.nam; allowed are name, path, url"),
        ("+extension=[0]", "extension=[0]"),
        ("++search.fitness.weights=[[1]]", "search.fitness.weights[0] must be a single value, found [1]"),
        ("evaluate.needles=[{}]", "evaluate.needles[0] must be a single value, found {}"),
        ("search.race=${corpus}", "unknown key search.race.name; allowed are blocks, p_value, shorter"),
        ("search.race=${model.name}", "search.race must be a section with the keys blocks, p_value, shorter"),
        ("corpus.subsets=${model}", "corpus.subsets must be a list"),
        ("seed=${model.name}", "seed: While dereferencing interpolation '${model.name}': Value 'walker' of type 'str'"),
        ("model.dtype=${seed}", "model.dtype must be one of float32, bfloat16, float16, found 0"),
        ("seed=${nope}", "seed: Interpolation key 'nope' not found"),
        ("extension.recover=${extension}", "extension.recover: Interpolation to parent node detected"),
        ("seed=${seed}", "seed: Recursive interpolation detected"),
        ("search.step=inf", "search.step must be a finite number, found inf"),
        ("corpus.near_duplicates=nan", "corpus.near_duplicates must be a finite number, found nan"),
        ("walker=-1", "walker=-1 cannot be applied: Config group override must be a string or a list. Got int"),
        ("evaluate.needle_lengths.a.b=1", "evaluate.needle_lengths.a.b=1 cannot be applied"),
        ("finetune.before_first=[{length: 0, steps: 1, batch_size: 1, learning_rate: 1}]", "before_first[0].length"),
        ("++seed[0]=1", "++seed[0]=1 is not in Hydra's grammar; a key is names with dots between them"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_it(override: str, part: str) -> None:
    with pytest.raises(ValueError, match=r"^configuration: ") as raised:
        composition.composed([override, "output=out", "work=work"])
    one_line(str(raised.value), part)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_every_group_composes(choice: str) -> None:
    assert composed(choice, *NEEDED.get(choice, [])).seed == 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str, tmp_path: Path) -> None:
    windows, other = {"smollm2": 8192}, []
    if name in windows:
        # Budgets follow from a model that is fetched when the recipe is run.
        tiny_llama(max_position_embeddings=windows[name]).save_pretrained(tmp_path)
        other = [f"model.path={tmp_path}"]
    config = composed(f"experiment={name}", *other)
    # Recipes for the walker leave its window to its checkpoint.
    window = config.model.original_length or windows.get(name, 256)
    check_window(config, window)
    check_measured(config, window)


def test_the_default_first_search_has_100_trials_in_5_generations_at_least(default: DictConfig) -> None:
    search = checked(default).search
    assert min(search.trials, search.patience or search.trials) >= 100
    assert search.initial_population + 4 * search.population_size < 100


def test_a_resolved_configuration_reads_back_as_the_same(scratch: Path) -> None:
    write_overrides(scratch, "experiment=smoke", "seed=7")
    run_script("compose")
    loaded = OmegaConf.load(scratch / "resolved.yaml")
    names = [item.name for item in fields(Config)]
    again = checked(OmegaConf.create({name: loaded[name] for name in names}))
    expected = composed("experiment=smoke", "seed=7")
    expected.output, expected.corpus.fingerprint = "results", again.corpus.fingerprint
    assert section(again, *names) == section(expected, *names)
    assert again.corpus.fingerprint is not None


def test_compose_prints_the_configuration(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_overrides(scratch, "seed=5")
    run_script("compose", "--cfg", "job")
    assert "seed: 5" in capsys.readouterr().out
    assert not (scratch / "resolved.yaml").exists()


@pytest.mark.parametrize("choice", ["all", "none", "paper", "quick"])
def test_every_choice_of_benchmarks_composes(choice: str) -> None:
    config = composed(f"evaluate/benchmarks={choice}", "evaluate=needles")
    assert config.evaluate.benchmarks.name == choice
    assert config.evaluate.stride == 128


def test_an_unforeseen_error_is_told_as_it_is() -> None:
    assert explain(ValueError("one\n  two")) == "configuration: one two"


OBVIOUS = {
    "name",
    "seed",
    "first",
    "second",
    "dtype",
    "weight_decay",
    "fitness",
    "race",
    "lora",
    "retrieval",
    "benchmarks",
}


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


def test_the_groups_of_methods_are_those_of_the_registry() -> None:
    for name, listed in (("all", methods.compared()), ("common", methods.common())):
        assert tuple(OmegaConf.load(CONF / "rope" / f"{name}.yaml").methods) == listed
    assert {path.stem for path in (CONF / "rope").glob("*.yaml")} == {*methods.compared(), "all", "common"}
