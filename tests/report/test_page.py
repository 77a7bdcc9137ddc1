"""The report page is one file without any outside reference, says what was run and what came out, and escapes text."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ropewalk.files import write_table
from ropewalk.report import Origin, write_report
from ropewalk.report.heatmaps import query_scales
from ropewalk.report.svg import inline
from ropewalk.report.tables import export_table
from ropewalk.rope import RopeScaling

from .conftest import CONFIG


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def written(whole_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    write_report(whole_results, config=CONFIG, out=out / "report.html")
    return out


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page((written / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_well_formed_and_refers_to_nothing_outside(written: Path, page: Page) -> None:
    assert page.open == []
    text = (written / "report.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    # Links to what lies beside the page, which it does without.
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["tokens/card.json", "tokens/card.png"]
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object")
        if tag == "a":
            continue
        for name in ("src", "href", "srcset"):
            if attributes.get(name) is not None:
                assert str(attributes[name]).startswith(("data:", "#"))


def test_every_plot_is_written_and_stands_in_the_page_with_a_description(written: Path, page: Page) -> None:
    assert {path.stem for path in (written / "plots").glob("*.png")} == {
        "perplexity", "passkey", "factors", "search", "training",
    }  # fmt: skip
    drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawn) == 2 + 2 + 2 + 5 + 3
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in drawn)
    assert not list(written.rglob(".*"))


def test_no_two_elements_share_an_id_and_every_reference_is_to_one(written: Path, page: Page) -> None:
    ids = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', (written / "report.html").read_text()))
    assert used <= set(ids)


def test_a_page_on_the_same_results_is_the_same(whole_results: Path, written: Path, tmp_path: Path) -> None:
    write_report(whole_results, config=CONFIG, out=tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == (written / "report.html").read_bytes()


def test_every_colour_of_the_figures_has_one_for_each_scheme(written: Path) -> None:
    text = (written / "report.html").read_text()
    used = set(re.findall(r"var\(--(c[0-9a-f]{6})\)", text))
    light, dark = re.findall(r":root \{([^}]*)\}", text)
    assert used
    assert all(f"--{name}:" in light and f"--{name}:" in dark for name in used)


def test_the_page_begins_with_the_question_and_its_answer_in_numbers(page: Page) -> None:
    for words in (
        "How far can walker read beyond the 256 tokens of its window",
        "It reads to 16,384 tokens: up to there the perplexity is not above",
        "At 16,384 tokens, the longest length measured, its perplexity is 5.30: 52 % lower than that of the best "
        "published method on the same weights and documents, YaRN (11.00).",
        "It retrieves to 1,024 tokens: up to there it gives at least 90 % of the answers",
        "1,024 tokens that it works to 16,384 tokens that it reads",
        "What the far text gains in the second half of the tokens, nats a token",
        "Passkey accuracy of ours by depth, both forms",
        "2 of 3 checks passed",
    ):
        assert words in page.text, words


def test_the_data_card_the_cost_and_how_to_repeat_the_run_are_on_the_page(
    whole_results: Path, tmp_path: Path, page: Page
) -> None:
    for words in (
        "Fingerprint of its source: python 3.11.7 sources 27184.",
        "hash of the tokens 0123456789ab",
        "training search test documents 68 13 16",
        "rejected: damaged 3",
        "First search, 2,048 tokens 40 128 8.80 → 8.64 2.3 M",
        "Fine-tuning, second part, 2,048 tokens 80 – – 1.97 M",
    ):
        assert words in page.text, words
    origin = Origin("c" * 40, ("experiment=smoke", "model.path='../x <y>'"))
    write_report(whole_results, config=CONFIG, out=tmp_path / "report.html", origin=origin)
    text = Page((tmp_path / "report.html").read_text()).text
    assert f"git checkout {'c' * 40} make demo" in text
    assert "overrides: - experiment=smoke - model.path='../x <y>'" in text


def test_benchmarks_and_retrieval_are_shown_where_there_are_results(
    whole_results: Path, tmp_path: Path, page: Page
) -> None:
    assert "Benchmarks" not in page.text
    assert "Retrieval or long context" not in page.text
    results = tmp_path / "results"
    shutil.copytree(whole_results, results)
    scores = {"task": "hellaswag", "metric": "acc_norm", "questions": 50, "cut": 0.1, "protocol": "10 shots"}
    models = {"base": "original window", "finetuned": "extended, recovered"}
    write_table(
        results / "plots/benchmarks.csv",
        [scores | {"model": model, "factors": factors, "score": 0.3} for model, factors in models.items()],
    )
    answers = [
        {"model": "finetuned" if way == "long" else "base", "task": task, "way": way, "length": length,
         "accuracy": share, "low": share - 0.1, "high": share + 0.1,
         "held": 0.8, "trials": 20, "tokens": length if way == "long" else 200, "seconds": 0.05,
         "protocol": "greedy",
         **({"likelihood_accuracy": 0.9, "chance": 0.125} if task == "multi_key" else {})}
        for task in ("passkey", "multi_key") for way, share in (("long", 0.5), ("retrieved", 0.75))
        for length in (1024, 2048)
    ]  # fmt: skip
    write_table(results / "plots/retrieval.csv", answers)
    needle = {"family": "multi_key", "model": "finetuned", "method": "ours", "length": 512, "depth": 0.5, "trials": 4}
    shares = {"accuracy": 0.25, "likelihood_accuracy": 0.75, "chance": 0.1, "protocol": "greedy"}
    write_table(results / "plots/needles.csv", [needle | shares, needle | shares | {"depth": 1.0, "accuracy": 0.75}])
    ratio = {"model": "base", "length": 2048, "against": "yarn", "perplexity_ratio": 0.9, "low": 0.85, "high": 0.95}
    write_table(results / "plots/paired.csv", [ratio | {"p_value": 0.01, "documents": 9}])
    write_report(results, config=CONFIG, out=tmp_path / "out" / "report.html")
    shown = Page((tmp_path / "out" / "report.html").read_text())
    assert "multi key: fine-tuned, ours 50 % likelier than others 75 %, chance 10 %" in shown.text
    assert "base model, YaRN 0.900 0.850–0.950, p 0.01, 9" in shown.text
    assert "hellaswag, acc_norm 30.0 % of 50, 10 % cut 30.0 % of 50, 10 % cut" in shown.text
    assert "Passkey, 1,024 BM25 chunks, base model's window 75 % 65–85 % – 80 % 200 50 ms 20" in shown.text
    chunks = "Multi key, 2,048 BM25 chunks, base model's window 75 % 65–85 % 90 % chance 12 % 80 % 200 50 ms 20"
    assert chunks in shown.text
    drawn = [str(attributes["aria-label"]) for tag, attributes in shown.tags if tag == "svg"]
    for task in ("passkey", "multi key"):
        assert f"Right answers by length of the document, for each way of reading it, {task}" in drawn


def test_the_page_says_what_was_run_and_what_came_out(page: Page) -> None:
    for words in (
        "Model: walker, 2,900,000 parameters, trained with a window of 256 tokens.",
        "Extended to 2,048 tokens by a search and a training, then to 16,384 tokens by a second search",
        "80 steps of 8 rows of 1,024 tokens",
        "are 20 % of the fine-tuning rows",
        "2 of 3 checks passed.",
        "✗ fail",
        "1.034",
        "2,048 tokens by 40 gradient steps and 128 Optuna trials",
        "16,384 tokens by 6 gradient steps and 0 Optuna trials",
        "128 Optuna trials in 8 generations; perplexity on search documents 8.80 with the gradient's own result",
        "at 2,048 tokens: perplexity 8.86 with the gradient's own result, 8.70 with the evolved factors, 1.8 % lower",
        "search_first at_2048.search_perplexity 8.64",
        "perplexity 8.70 with our factors, 10.15 with the best baseline, YaRN",
        "Protocol: one pass over BOS and the first tokens, mean over all tokens.",
        "s=8, composed",
    ):
        assert words in page.text, words


def test_text_from_the_files_is_escaped(whole_results: Path, tmp_path: Path, page: Page) -> None:
    assert "With <recovered> factors at 256 & below" in page.text
    results = tmp_path / "results"
    shutil.copytree(whole_results, results)
    base = json.loads((results / "base.json").read_text())
    (results / "base.json").write_text(json.dumps({**base, "name": '<script src="x">alert(1)</script>'}))
    write_report(results, config={**CONFIG, "note": "</pre><img src=x>"}, out=tmp_path / "out" / "report.html")
    other = Page((tmp_path / "out" / "report.html").read_text())
    assert [tag for tag, _ in other.tags] == [tag for tag, _ in page.tags]


def test_what_is_missing_is_named_with_the_stage_that_makes_it(tmp_path: Path) -> None:
    write_report(tmp_path / "results", config={}, out=tmp_path / "out" / "report.html")
    page = Page((tmp_path / "out" / "report.html").read_text())
    for name, stage in (
        ("base.json", "base"), ("checks.json", "evaluate"), ("verdict.json", "evaluate"),
        ("plots/perplexity.csv", "evaluate"),
        ("plots/search_second.csv", "search_second"), ("factors/recovered.json", "recover"),
        ("plots/finetune_first.csv", "finetune_first"), ("plots/passkey.csv", "evaluate"),
    ):  # fmt: skip
        assert f"{name} is not there; stage {stage} makes it" in page.text
    assert not [tag for tag, _ in page.tags if tag == "svg"]


def test_a_run_without_every_method_says_why_there_are_no_checks(whole_results: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(whole_results, results)
    (results / "checks.json").write_text("[]")
    write_report(results, config=CONFIG, out=tmp_path / "out" / "report.html")
    assert "checks.json holds no checks" in Page((tmp_path / "out" / "report.html").read_text()).text


def test_a_broken_file_is_named(whole_results: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(whole_results, results)
    (results / "checks.json").write_text("[{")
    with pytest.raises(ValueError, match=r"checks\.json"):
        write_report(results, config=CONFIG, out=tmp_path / "out" / "report.html")
    assert not (tmp_path / "out" / "report.html").exists()


def test_what_an_export_loses_is_a_table_by_length_and_way() -> None:
    rows = [
        {"variant": way, "length": 256, "perplexity": value, "protocol": "one pass"}
        for way, value in (("with ropewalk", 10.0), ("without n_hat", 10.1), ("same", 12.0), ("recovered", 11.0))
    ]
    table = export_table(rows)
    assert table.header[-1] == "transformers, short_factor=recovered"
    assert [(cell.text, cell.note) for cell in table.rows[0]] == [
        ("256", ""), ("10.00", ""), ("10.10", "+1.0 %"), ("12.00", "+20.0 %"), ("11.00", "+10.0 %"),
    ]  # fmt: skip
    assert table.notes == ("Protocol: one pass.",)


def test_query_scales_are_counted_and_drawn_where_there_are_any(
    whole_results: Path, written: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    shutil.copytree(whole_results, results)
    scaling = RopeScaling((1.0, 4.0), 256, 2048, query_scales=((0.8, 1.0, 1.25),) * 4)
    (results / "factors/first.json").write_text(scaling.to_json())
    write_report(results, config=CONFIG, out=tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "12 query scales were learned, 3 in each of 4 layers, between 0.8 and 1.25" in page.text
    assert "Query scales by layer and head" in [tag["aria-label"] for name, tag in page.tags if name == "svg"]
    assert "query scales" not in (written / "report.html").read_text()


def test_thousands_of_query_scales_are_an_image_within_the_page() -> None:
    drawn = Page(inline(query_scales([[0.8, 1.0, 1.25] * 200] * 4), name="scales", alt="Query scales"))
    images = [str(attributes["href"]) for name, attributes in drawn.tags if name == "image"]
    # One more is the bar of its colours.
    assert [image[:15] for image in images] == ["data:image/png;"] * 2
