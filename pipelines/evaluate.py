"""Stage evaluate: perplexity at every length for every method and our models, passkey accuracy, and the checks."""

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.checks import checks
from ropewalk.evaluate.compare import measure
from ropewalk.evaluate.retrieval import retrieval_rows
from ropewalk.evaluate.rivals import weights_of
from ropewalk.evaluate.road import Road, load_models, metrics, model_paths, with_seed
from ropewalk.files import read_json, write_json, write_table
from ropewalk.models.base import load_tokenizer
from ropewalk.stage import Stage, run


def evaluate(stage: Stage) -> None:
    config, base = stage.config, read_json(stage.inputs / "base.json")
    models = load_models(base, stage.inputs / "checkpoints", dtype=config.model.dtype)
    road = Road.read(stage.inputs / "factors", base, config.evaluate, methods=tuple(config.rope.methods))
    store = TokenStore(stage.inputs / "tokens" / "test")
    rows = measure(models, with_seed(road, store, stage.inputs / "factors" / "first_seed.json", models))
    plots = stage.output / "plots"
    write_table(plots / "perplexity.csv", rows)
    passkeys = road.passkeys(models, load_tokenizer(base["path"]), seed=config.seed)
    write_table(plots / "passkey.csv", passkeys)
    write_table(plots / "factors.csv", road.factor_rows())
    answers = retrieval_rows(road, models, load_tokenizer(base["path"]), store, seed=config.seed)
    write_table(plots / "retrieval.csv", answers)
    stage.write_metrics(metrics(rows, passkeys))
    whole = set(road.methods) == set(Road.ALL)
    found = checks(rows, passkeys, window=road.window, target=road.first.target_length) if whole else []
    write_json(stage.output / "checks.json", [check.to_dict() for check in found])
    weights = weights_of(model_paths(base, stage.inputs / "checkpoints"))
    card = read_json(stage.inputs / "tokens" / "card.json")
    tracking.log_comparison(rows, passkeys, name=base["name"], weights=weights, card=card)
    for name in ("perplexity.csv", "passkey.csv", "factors.csv", "retrieval.csv"):
        tracking.log_file(plots / name)
    tracking.log_file(stage.output / "checks.json")


if __name__ == "__main__":
    needed = ("base.json", "tokens", "checkpoints", "factors")
    run("evaluate", evaluate, sections=("evaluate", "model", "rope"), inputs=needed)
