"""Every claim of the pass/fail table can pass and can fail, and the table in the terminal says which."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from ropewalk.evaluate.checks import Check, checks
from ropewalk.evaluate.result_table import ResultTable
from ropewalk.evaluate.summary import summary
from ropewalk.rope.methods import baselines

METHODS = baselines()
NAMES = (
    *("plain RoPE", "PI", "NTK-aware", "dynamic NTK", "ABF", "YaRN"),
    *("NTK-rcd", "YaRN-rcd", "MrRoPE-Pro", "TailSpline", "CoPE"),
)

Rows = list[dict[str, Any]]


def perplexity(model: str, method: str, length: int, documents: str, value: float) -> dict[str, Any]:
    return {"model": model, "method": method, "length": length, "document_set": documents, "perplexity": value}


def passing() -> tuple[Rows, Rows]:
    """Figures of an extension on which every claim holds, if barely."""
    rows = [perplexity("base", method, 2048, "all", 5.1) for method in METHODS]
    rows += [
        perplexity("base", "ours", 2048, "all", 5.0),
        perplexity("base", "none", 256, "all", 4.9),
        perplexity("control", "none", 256, "all", 4.85),
        perplexity("finetuned", "ours", 2048, "all", 4.8),
        perplexity("finetuned", "ours", 2048, "long", 4.0),
        perplexity("finetuned", "ours", 256, "all", 5.04),
        perplexity("finetuned", "ours", 8192, "long", 4.39),
        perplexity("finetuned", "ours", 16384, "long", 4.99),
    ]
    for length, value in ((8192, 4.4), (16384, 5.0)):
        # A second, worse variant of each does not count.
        rows += [perplexity("finetuned", method, length, "long", value + more) for method in METHODS for more in (0, 9)]
    passkeys = [
        {"model": model, "method": method, "length": length, "form": form, "depth": depth, "cluster": number,
         "trials": 5, "correct": correct, "likely": 5}
        for model, method, correct in (("finetuned", "ours", 5), ("base", "ours", 0), ("base", "yarn", 0))
        for length in (256, 2048)
        for form in ("published", "varied")
        for number, depth in enumerate((0.1, 0.5, 0.9))
    ]  # fmt: skip
    return rows, passkeys


def found(rows: Rows, passkeys: Rows) -> list[Check]:
    tables = ResultTable.from_rows(rows), ResultTable.from_rows(passkeys)
    return checks(*tables, window=256, target=2048, reach=16384)


def text_of(rows: Rows, passkeys: Rows, made: list[Check]) -> str:
    return summary(
        ResultTable.from_rows(rows), ResultTable.from_rows(passkeys), [], [check.to_dict() for check in made]
    )


def test_all_claims_hold_on_a_good_extension() -> None:
    made = found(*passing())
    assert len(made) == len(METHODS) + 1 + 2 + 2 + 2 + 1 + 2
    assert all(check.passed for check in made)
    assert len({check.claim for check in made}) == len(made)
    assert {check.limit for check in made if "over that at" in check.claim} == {1.1, 1.25}


def worse(model: str, method: str, length: int, value: float, documents: str = "all") -> Callable[[Rows, Rows], None]:
    def change(rows: Rows, _: Rows) -> None:
        for row in rows:
            if (row["model"], row["method"], row["length"], row["document_set"]) == (model, method, length, documents):
                row["perplexity"] = value

    return change


def fewer_keys(length: int) -> Callable[[Rows, Rows], None]:
    def change(_: Rows, passkeys: Rows) -> None:
        for row in passkeys:
            if row["length"] == length and row["depth"] == 0.9:
                row["correct"] -= 2 * (row["model"] == "finetuned")

    return change


def more_keys_under_yarn(_: Rows, passkeys: Rows) -> None:
    for row in passkeys:
        row["correct"] += (row["model"], row["method"]) == ("base", "yarn")


FAILURES = {
    **{
        f"Without fine-tuning, perplexity at 2,048: ours below {name}": worse("base", method, 2048, 5.0)
        for method, name in zip(METHODS, NAMES, strict=True)
    },
    "Without fine-tuning, passkeys at 2,048: ours not below YaRN": more_keys_under_yarn,
    "Fine-tuned at 2,048: perplexity below the base model's at 256": worse("base", "none", 256, 4.8),
    "Fine-tuned at 2,048: perplexity below that of a control trained as long at 256": worse(
        "control", "none", 256, 4.8
    ),
    "At 8,192, not trained there: below the best baseline on the same model (YaRN)": worse(
        "finetuned", "yarn", 8192, 4.39, "long"
    ),
    "At 16,384, not trained there: below the best baseline on the same model (PI)": worse(
        "finetuned", "pi", 16384, 4.0, "long"
    ),
    "Perplexity at 8,192 over that at 2,048, same documents": worse("finetuned", "ours", 8192, 4.41, "long"),
    "Perplexity at 16,384 over that at 2,048, same documents": worse("finetuned", "ours", 16384, 5.01, "long"),
    "Recovered factors at 256: perplexity over the base model's own": worse("finetuned", "ours", 256, 5.05),
    "Passkey accuracy at 256, published form": fewer_keys(256),
    "Passkey accuracy at 2,048, published form": fewer_keys(2048),
}


@pytest.mark.parametrize("claim", FAILURES)
def test_each_claim_fails_where_its_figure_does(claim: str) -> None:
    rows, passkeys = passing()
    FAILURES[claim](rows, passkeys)
    failed = {check.claim for check in found(rows, passkeys) if not check.passed}
    assert claim in failed
    # A figure may belong to two claims, but to no more.
    assert len(failed) <= 2
    text = text_of(rows, passkeys, found(rows, passkeys))
    assert f"not met: {claim}" in text
    assert f"{21 - len(failed)} of 21 checks passed:" in text


def test_equality_and_infinity_are_not_below() -> None:
    rows, passkeys = passing()
    worse("base", "ours", 2048, math.inf)(rows, passkeys)
    worse("base", "none", 2048, math.inf)(rows, passkeys)
    assert sum(not check.passed for check in found(rows, passkeys)) == len(METHODS)
    worse("finetuned", "ours", 256, math.inf)(rows, passkeys)
    worse("base", "none", 256, math.inf)(rows, passkeys)
    (recovered,) = [check for check in found(rows, passkeys) if check.claim.startswith("Recovered")]
    assert not recovered.passed


def test_a_claim_without_its_figures_is_left_out() -> None:
    rows, passkeys = passing()
    without_control = [row for row in rows if row["model"] != "control"]
    assert len(found(without_control, passkeys)) == 20
    short = [row for row in rows if row["length"] != 2048]
    left = [check.claim for check in found(short, [])]
    assert [claim.split(":")[0] for claim in left] == [
        "At 8,192, not trained there",
        "At 16,384, not trained there",
        "Recovered factors at 256",
    ]


def test_without_a_training_ours_is_compared_with_the_published_methods_and_nothing_else_is_claimed() -> None:
    rows, passkeys = passing()
    rows = [row for row in rows if row["model"] == "base"]
    rows += [perplexity("base", method, 16384, "long", 9.0) for method in ("pi", "ours")]
    passkeys = [row for row in passkeys if (row["model"], row["method"]) == ("base", "ours")]
    passkeys += [row | {"method": "yarn", "correct": 4 if row["form"] == "varied" else 2} for row in passkeys]
    made = found(rows, passkeys)
    assert {check.claim.split(":")[0] for check in made} == {
        "Without fine-tuning, perplexity at 2,048",
        "Without fine-tuning, passkeys at 2,048",
    }
    assert len(made) == len(METHODS) + 1
    text = text_of(rows, passkeys, made)
    assert "fine-tuned" not in text
    lines = text.splitlines()
    assert lines[1].split() == ["256", "2,048", "16,384"]
    keys = lines[lines.index("Passkey accuracy, base model as it is") :]
    assert [line.split() for line in keys[1:8]] == [
        ["256", "2,048"],
        ["YaRN", "60%", "60%"], ["interval", "60-60%", "60-60%"], ["published", "40%", "40%"],
        ["ours", "0%", "0%"], ["interval", "0-39%", "0-39%"], ["published", "0%", "0%"],
    ]  # fmt: skip


def test_nothing_is_claimed_beyond_the_lengths_that_there_are_factors_for() -> None:
    tables = map(ResultTable.from_rows, passing())
    claims = [check.claim for check in checks(*tables, window=256, target=2048, reach=8192)]
    assert any("8,192" in claim for claim in claims)
    assert not any("16,384" in claim for claim in claims)


def test_the_summary_shows_one_set_of_documents_in_a_column() -> None:
    rows, passkeys = passing()
    rows += [perplexity("finetuned", "yarn", 2048, "all", 4.9)]
    text = text_of(rows, passkeys, found(rows, passkeys))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    tuned = lines[lines.index("Perplexity by length, fine-tuned model") :]
    assert tuned[1].split() == ["256", "2,048", "8,192", "16,384"]
    (ours,) = [line for line in tuned[: len(METHODS) + 3] if line.startswith("ours")]
    # 4.0 at 2,048 is of the long documents alone, and the other methods' figures are of all.
    assert ours.split()[1:] == ["5.040", "4.800", "4.390", "4.990"]
    (yarn,) = [line for line in tuned[: len(METHODS) + 3] if line.startswith("YaRN ")]
    assert yarn.split()[1:] == ["4.900", "4.400", "5.000"]
    assert yarn[12:22].strip() == ""
    keys = lines[lines.index("Passkey accuracy, fine-tuned model") :]
    assert keys[2].split() == ["ours", "100%", "100%"]
    assert lines[-1] == "21 of 21 checks passed"


def test_the_summary_of_an_evaluation_without_passkeys_or_checks_can_be_printed() -> None:
    rows, _ = passing()
    lines = text_of(rows, [], []).splitlines()
    assert lines[-1].startswith("Passkey accuracy") or not lines[-1].strip()
    assert not [line for line in lines if "checks passed" in line]
