"""Stage evaluate: perplexity at every length for every method and our models, passkey accuracy, and the checks."""

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.checks import checks
from ropewalk.evaluate.compare import measure
from ropewalk.evaluate.road import Road, load_models, metrics, with_seed
from ropewalk.files import read_json, write_json, write_table
from ropewalk.models.base import load_tokenizer
from ropewalk.stage import Stage, run


def evaluate(stage: Stage) -> None:
    config, base = stage.config, read_json(stage.inputs / "base.json")
    models = load_models(base, stage.inputs / "checkpoints", **config.model.loading)
    road = Road.read(stage.inputs / "factors", base, config.evaluate, methods=tuple(config.rope.methods))
    store = TokenStore(stage.inputs / "tokens" / "test")
    rows = measure(models, with_seed(road, store, stage.inputs / "factors" / "first_seed.json", models))
    plots = stage.output / "plots"
    write_table(plots / "perplexity.csv", rows)
    passkeys = road.passkeys(models, load_tokenizer(base["path"], **config.model.trust), seed=config.seed)
    write_table(plots / "passkey.csv", passkeys)
    write_table(plots / "factors.csv", road.factor_rows())
    stage.write_metrics(metrics(rows, passkeys))
    whole = set(road.methods) == set(Road.ALL)
    found = checks(rows, passkeys, window=road.window, target=road.first.target_length) if whole else []
    write_json(stage.output / "checks.json", [check.to_dict() for check in found])
    for name in ("perplexity.csv", "passkey.csv", "factors.csv"):
        tracking.log_file(plots / name)
    tracking.log_file(stage.output / "checks.json")


if __name__ == "__main__":
    needed = ("base.json", "tokens", "checkpoints", "factors")
    run("evaluate", evaluate, sections=("evaluate", "model", "rope"), inputs=needed)
