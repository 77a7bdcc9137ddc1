"""The report page is one file without any outside reference, says what was run and what came out, and escapes text."""

import base64
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ropewalk.report import write_report
from ropewalk.report.tables import export_table

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
    assert "url(" not in text
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
                assert str(attributes[name]).startswith("data:")


def test_every_plot_is_written_and_embedded_with_a_description(written: Path, page: Page) -> None:
    files = {path.read_bytes() for path in (written / "plots").glob("*.png")}
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    embedded = {base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,")) for image in images}
    assert embedded == files
    assert len(files) == 5
    assert all(image["alt"] for image in images)
    assert not list(written.rglob(".*"))


def test_the_page_says_what_was_run_and_what_came_out(page: Page) -> None:
    for words in (
        "Model: walker, 2,900,000 parameters, trained with a window of 256 tokens.",
        "first target 2,048 tokens, second target 16,384 tokens",
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
        ("base.json", "base"), ("checks.json", "evaluate"), ("plots/perplexity.csv", "evaluate"),
        ("plots/search_second.csv", "search_second"), ("factors/recovered.json", "recover"),
        ("plots/finetune_first.csv", "finetune_first"), ("plots/passkey.csv", "evaluate"),
    ):  # fmt: skip
        assert f"{name} is not there; stage {stage} makes it" in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]


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
