"""The card says what the model is, how it was made, what was measured, and how loaders differ."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ropewalk.export import model_card
from ropewalk.export.card import how_made, license_of
from ropewalk.files import write_json
from ropewalk.models.base import BaseModel
from ropewalk.models.factors import FactorsByLength, FactorsEntry
from ropewalk.rope import LengthSwitch, RopeScaling

LONG = RopeScaling((1.0, 4.0, 9.0), 256, 16_384, n_hat=4, attention_factor=1.27)
SHORT = RopeScaling((1.0, 1.5, 2.0), 256, 256, attention_factor=1.01)
LONG_ONLY, SWITCH = LengthSwitch(((16_384, LONG),)), LengthSwitch(((256, SHORT), (16_384, LONG)))
BASE = BaseModel(
    name="walker: the 'first'", path="models/walker", weights_sha256="ab" * 32, original_length=256, rotary_dim=6,
    rope_theta=1e4, parameters=2_900_000, vocab_size=1024,
)  # fmt: skip
PERPLEXITY: list[dict[str, Any]] = [
    {"model": model, "method": method, "variant": "s=1", "length": length, "perplexity": value, "documents": 8,
     "tokens": 8 * length, "document_set": "long", "protocol": "one pass over the first tokens"}
    for model, method, length, value in (
        ("base", "none", 256, 7.5), ("base", "pi", 256, 9.1),
        ("finetuned", "ours", 256, 7.6), ("finetuned", "ours", 16_384, 6.25),
    )
]  # fmt: skip
PASSKEY = [
    {"model": "finetuned", "method": "ours", "length": 2048, "form": form, "depth": depth, "cluster": number,
     "trials": 5, "correct": correct, "likely": 4}
    for form, correct in (("published", 5), ("varied", 4))
    for number, depth in enumerate((0.25, 0.5, 0.75))
]  # fmt: skip


def card(switch: LengthSwitch, **more: Any) -> str:
    return model_card(
        base=BASE,
        switch=switch,
        perplexity_rows=PERPLEXITY,
        passkey_rows=PASSKEY,
        how_made={"Search": "212 trials", "finetune": {"first": {"steps": 80, "decay": None}}},
        **more,
    )


def test_front_matter_is_yaml_whatever_the_name() -> None:
    values = yaml.safe_load(card(LONG_ONLY).split("---")[1])
    assert values["library_name"] == "transformers"
    assert values["base_model"] == BASE.name
    assert "longrope" in values["tags"]


def test_figures_come_with_protocol_and_only_for_the_model_and_its_base() -> None:
    text = card(SWITCH)
    assert "one pass over the first tokens" in text
    assert "| this model | 16,384 | 6.25 | s=1 | 8 (long) | 131,072 |" in text
    assert "9.10" not in text
    assert "| 2,048 | 90 % | 90–90 % | 100 % | 80 % | 30 |" in text
    assert "- Search: 212 trials\n- finetune:\n  - first:\n    - steps: 80\n\n" in text


def test_a_model_that_was_not_trained_is_said_to_be_the_base_model_under_other_factors() -> None:
    untrained = [row | {"model": "base"} for row in PERPLEXITY]
    text = model_card(
        base=BASE, switch=SWITCH, perplexity_rows=untrained, passkey_rows=[row | {"model": "base"} for row in PASSKEY],
        how_made={}, extended="base",
    )  # fmt: skip
    assert "No weight was changed and nothing was trained" in text
    assert "No weight was changed" not in card(SWITCH)
    assert "| this model | 16,384 | 6.25 |" in text
    assert "| base model, plain RoPE | 256 | 7.50 |" in text
    assert "9.10" not in text
    assert "| 2,048 | 90 % | 90–90 % | 100 % | 80 % | 30 |" in text


def test_the_searches_are_told_with_their_budget_and_nothing_empty_is(tmp_path: Path) -> None:
    origin = {"method": "hybrid", "trials": 12, "gradient_steps": 24, "model_hash": "ab" * 32, "commit": "abc1234"}
    factors = FactorsByLength((FactorsEntry(2048, SHORT, origin), FactorsEntry(4096, LONG)))
    write_json(tmp_path / "factors" / "recovered.json", factors.to_dict())
    write_json(tmp_path / "tokens" / "card.json", {"rows": 3})
    settings = {"corpus": {"name": "text", "quality": {}, "path": None}}
    made: dict[str, Any] = {"base": BASE, "switch": LONG_ONLY, "perplexity_rows": [], "passkey_rows": []}
    text = model_card(**made, how_made=how_made(tmp_path, settings))
    lines = ["- factors for up to 2,048 tokens:", "  - method: hybrid", "  - gradient steps: 24", "  - trials: 12"]
    assert "\n".join([*lines, "  - commit: abc1234", "- corpus:", "  - name: text\n\n"]) in text
    assert "4,096 tokens:" not in text
    write_json(tmp_path / "tokens" / "card.json", {"salt": "3"})
    assert "- salt that was chosen for the split: 3\n" in model_card(**made, how_made=how_made(tmp_path, {}))


def test_the_verdict_stands_below_the_summary() -> None:
    text = card(SWITCH, verdict=("Works to 2,048 tokens.", "It reads to 16,384 tokens."))
    assert "Works to 2,048 tokens. It reads to 16,384 tokens.\n\n## How it was made" in text


def test_what_plain_transformers_leaves_out_is_said() -> None:
    switching = card(SWITCH)
    assert "ignores n_hat = 4" in switching
    assert "applies the factors for the longest inputs at every length" in switching
    same = card(LengthSwitch(((16_384, RopeScaling((1.0, 4.0, 9.0), 256, 16_384)),)))
    assert "n_hat = " not in same
    assert "Both give the same outputs" in same


def test_a_card_without_figures_leaves_their_tables_out() -> None:
    text = model_card(base=BASE, switch=LONG_ONLY, perplexity_rows=[], passkey_rows=[], how_made={})
    assert "Perplexity" not in text
    assert "Passkey" not in text


def test_two_sets_of_factors_come_with_a_warning() -> None:
    made: dict[str, Any] = {"base": BASE, "perplexity_rows": [], "passkey_rows": [], "how_made": {}}
    warned = model_card(**made, switch=SWITCH, short_factor="recovered")
    assert "**Warning.**" in warned
    assert "cross 256 tokens" in warned
    assert "Warning" not in model_card(**made, switch=SWITCH)


def test_licence_pictures_and_what_other_software_loses_are_in_it() -> None:
    cost = [
        {"variant": way, "length": 256, "perplexity": value}
        for way, value in (("with ropewalk", 7.6), ("without n_hat", 7.7), ("same", 8.8), ("recovered", 8.1))
    ]
    text = model_card(
        base=BASE, license_name="apache-2.0", switch=LONG_ONLY, perplexity_rows=[], passkey_rows=[],
        how_made={}, cost_rows=cost, pictures={"perplexity.png": "Perplexity"},
    )  # fmt: skip
    assert yaml.safe_load(text.split("---")[1])["license"] == "apache-2.0"
    assert "![Perplexity](perplexity.png)" in text
    assert "| 256 | 7.60 | 7.70 | 8.80 | 8.10 |" in text


def test_a_base_model_that_came_with_a_scaling_is_not_called_plain() -> None:
    base = replace(BASE, start_switch=LengthSwitch(((1024, replace(LONG, target_length=1024)),)))
    text = model_card(base=base, switch=LONG_ONLY, perplexity_rows=PERPLEXITY, passkey_rows=[], how_made={})
    assert "context extended from 1,024 to 16,384 tokens" in text
    assert "came with a scaling from 256 to 1,024 tokens, which the factors include" in text
    assert "| base model as it came | 256 | 7.50 |" in text


def test_the_licence_is_read_from_the_base_models_card(tmp_path: Path) -> None:
    assert license_of(tmp_path) is None
    assert license_of("owner/model") is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# A model\n")
    assert license_of(tmp_path) == "mit"
    for text in ("# no front matter", "---\n: : [\n---\n", "---\n- list\n---\n", "---\nlicense: [a, b]\n---\n"):
        (tmp_path / "README.md").write_text(text)
        assert license_of(tmp_path) is None
