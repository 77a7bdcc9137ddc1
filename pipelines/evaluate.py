"""Stage evaluate: perplexity by length for every method and model, passkey, needles, benchmarks, and the checks."""

from ropewalk import tracking
from ropewalk.evaluate.checks import checks
from ropewalk.evaluate.models import weights_of
from ropewalk.evaluate.result_table import ResultTable
from ropewalk.evaluate.summary import metrics
from ropewalk.evaluate.tables import Evaluation
from ropewalk.evaluate.verdict import TABLES, Verdict
from ropewalk.files import read_json, write_json, write_table
from ropewalk.report.mlflow_runs import log_comparison
from ropewalk.rope.methods import common
from ropewalk.stage import Stage, run


def evaluate(stage: Stage) -> None:
    evaluation = Evaluation(stage.config, stage.inputs, stage.state)
    rows = evaluation.tables()
    for name, of_table in rows.items():
        write_table(stage.output / "plots" / f"{name}.csv", of_table)
        tracking.log_file(stage.output / "plots" / f"{name}.csv")
    extension, target = evaluation.extension, evaluation.extension.first.target_length
    perplexity, passkey, needles, _ = tables = [ResultTable.from_rows(rows[name]) for name in TABLES]
    verdict = Verdict.of(*tables, window=extension.window, extended=extension.extended)
    write_json(stage.output / "verdict.json", verdict.to_json())
    stage.write_metrics(metrics(perplexity, passkey, needles, rows["benchmarks"]) | verdict.lengths)
    whole = set(extension.methods) >= set(common())
    promised = checks(perplexity, passkey, window=extension.window, target=target, reach=extension.switch.lengths[-1])
    write_json(stage.output / "checks.json", [check.to_dict() for check in promised if whole])
    weights, card = weights_of(evaluation.paths), read_json(stage.inputs / "tokens" / "card.json")
    name = evaluation.base.name
    log_comparison(perplexity, passkey, verdict, name=name, weights=weights, card=card, target=target)
    tracking.log_file(stage.output / "checks.json")


if __name__ == "__main__":
    needed = ("base.json", "tokens", "prompts", "checkpoints", "factors")
    run("evaluate", evaluate, sections=("evaluate", "model", "rope"), inputs=needed)
