"""Stage evaluate: perplexity by length for every method and model, passkey, needles, benchmarks, and the checks."""

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.cache import model_cache
from ropewalk.evaluate.checks import checks
from ropewalk.evaluate.compare import measured, measured_sliding, paired_rows, position_rows
from ropewalk.evaluate.drawing import DrawnPrompts
from ropewalk.evaluate.retrieval import retrieval_rows
from ropewalk.evaluate.rivals import weights_of
from ropewalk.evaluate.road import Road, load_models, metrics, model_paths, with_seed
from ropewalk.files import read_json, write_json, write_table
from ropewalk.models.base import load_tokenizer
from ropewalk.stage import Stage, run


def evaluate(stage: Stage) -> None:
    config, base = stage.config, read_json(stage.inputs / "base.json")
    own, checkpoints = config.evaluate, stage.inputs / "checkpoints"
    models = load_models(base, checkpoints, **config.model.loading)
    cache = model_cache(own.cache, model_paths(base, checkpoints), models)
    road = Road.read(stage.inputs / "factors", base, own, methods=tuple(config.rope.methods))
    store, tokenizer = TokenStore(stage.inputs / "tokens" / "test"), load_tokenizer(base["path"], **config.model.trust)
    readings = list(with_seed(road, store, stage.inputs / "factors" / "first_seed.json", models))
    found = measured(models, readings, cache=cache, chunk=own.chunk_tokens)
    rows = [one.row for one in found]
    sliding = measured_sliding(models, readings, stride=own.stride, cache=cache, chunk=own.chunk_tokens)
    prompts = DrawnPrompts.open(stage.inputs / "prompts", tokenizer, store)
    passkeys = road.passkeys(models, prompts, seed=config.seed, cache=cache)
    needles = road.needles(models, prompts, seed=config.seed, cache=cache)
    benchmarks = road.benchmarks(models, tokenizer, cache=cache)
    tables = {
        "perplexity": rows,
        "positions": list(position_rows(found)),
        "paired": list(paired_rows(found)),
        "sliding": [one.row for one in sliding],
        "passkey": passkeys,
        "needles": needles,
        "benchmarks": benchmarks,
        "factors": road.factor_rows(),
        "retrieval": retrieval_rows(road, models, prompts, seed=config.seed),
    }
    for name, table in tables.items():
        write_table(stage.output / "plots" / f"{name}.csv", table)
        tracking.log_file(stage.output / "plots" / f"{name}.csv")
    stage.write_metrics(metrics(rows, passkeys, needles, benchmarks))
    whole = set(road.methods) == set(Road.ALL)
    promised = checks(rows, passkeys, window=road.window, target=road.first.target_length) if whole else []
    write_json(stage.output / "checks.json", [check.to_dict() for check in promised])
    card, weights = read_json(stage.inputs / "tokens" / "card.json"), weights_of(model_paths(base, checkpoints))
    tracking.log_comparison(rows, passkeys, name=base["name"], weights=weights, card=card)
    tracking.log_file(stage.output / "checks.json")


if __name__ == "__main__":
    needed = ("base.json", "tokens", "prompts", "checkpoints", "factors")
    run("evaluate", evaluate, sections=("evaluate", "model", "rope"), inputs=needed)
