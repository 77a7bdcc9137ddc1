"""Stage evaluate: perplexity by length for every method and model, passkey, needles, benchmarks, and the checks."""

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.cache import model_cache
from ropewalk.evaluate.checks import checks
from ropewalk.evaluate.compare import perplexity_tables
from ropewalk.evaluate.extension import Extension, with_gradient
from ropewalk.evaluate.far_context import far_context_rows, with_key_tokens
from ropewalk.evaluate.models import LoadedModels, model_paths, weights_of
from ropewalk.evaluate.prompt_sets import PromptSets, needle_draws, passkey_draws
from ropewalk.evaluate.result_table import ResultTable
from ropewalk.evaluate.retrieval import retrieval_rows
from ropewalk.evaluate.summary import metrics
from ropewalk.evaluate.verdict import TABLES, Verdict
from ropewalk.files import read_json, write_json, write_table
from ropewalk.models.base import BaseModel, load_tokenizer
from ropewalk.report.mlflow_runs import log_comparison
from ropewalk.rope.methods import common
from ropewalk.stage import Stage, run


def evaluate(stage: Stage) -> None:
    config, base = stage.config, BaseModel.read(stage.inputs / "base.json")
    seed, settings, paths = config.seed, config.evaluate, model_paths(base, stage.inputs / "checkpoints")
    models = LoadedModels(paths, **config.model.loading)
    cache = model_cache(settings.cache, paths, dtype=config.model.dtype, **config.model.trust)
    extension = Extension.read(stage.inputs, base, settings, methods=tuple(config.rope.methods))
    store, tokenizer = TokenStore(stage.inputs / "tokens" / "test"), load_tokenizer(base.path, **config.model.trust)
    sets = with_key_tokens(extension.document_sets(store), extension, models, cache=cache)
    tasks = list(with_gradient(extension, sets, stage.inputs / "factors" / "first_gradient.json", models))
    prompts, target = PromptSets.open(stage.inputs / "prompts", tokenizer, store), extension.first.target_length
    rows = {
        **perplexity_tables(models, tasks, stride=settings.stride, cache=cache, chunk=settings.chunk_tokens),
        "far_context": far_context_rows(sets, extension, models, cache=cache),
        "passkey": extension.recall(passkey_draws(settings, target=target, seed=seed), models, prompts, cache=cache),
        "needles": extension.recall(needle_draws(settings, seed=seed), models, prompts, cache=cache),
        "benchmarks": extension.benchmarks(models, tokenizer, cache=cache),
        "factors": extension.factor_rows(),
        "retrieval": retrieval_rows(extension, models, prompts, seed=seed),
    }
    for name, of_table in rows.items():
        write_table(stage.output / "plots" / f"{name}.csv", of_table)
        tracking.log_file(stage.output / "plots" / f"{name}.csv")
    perplexity, passkey, needles, _ = tables = [ResultTable.from_rows(rows[name]) for name in TABLES]
    verdict = Verdict.of(*tables, window=extension.window, extended=extension.extended)
    write_json(stage.output / "verdict.json", verdict.to_json())
    stage.write_metrics(metrics(perplexity, passkey, needles, rows["benchmarks"]) | verdict.lengths)
    whole = set(extension.methods) >= set(common())
    promised = checks(perplexity, passkey, window=extension.window, target=target, reach=extension.switch.lengths[-1])
    write_json(stage.output / "checks.json", [check.to_dict() for check in promised if whole])
    card = read_json(stage.inputs / "tokens" / "card.json")
    log_comparison(perplexity, passkey, verdict, name=base.name, weights=weights_of(paths), card=card, target=target)
    tracking.log_file(stage.output / "checks.json")


if __name__ == "__main__":
    needed = ("base.json", "tokens", "prompts", "checkpoints", "factors")
    run("evaluate", evaluate, sections=("evaluate", "model", "rope"), inputs=needed)
