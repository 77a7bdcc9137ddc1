"""What the page says first, from tables of perplexity and passkey accuracy."""

from typing import Any

from ropewalk.evaluate.result_table import ResultTable
from ropewalk.report.answer import answer


def row(method: str, length: int, perplexity: float, documents: str = "all") -> dict[str, Any]:
    return {
        "model": "base", "method": method, "variant": "", "length": length, "perplexity": perplexity,
        "documents": 4, "tokens": 4 * length, "document_set": documents, "protocol": "one pass",
    }  # fmt: skip


def said(perplexity: list[dict[str, Any]]) -> tuple[str, ...]:
    return answer("tiny", ResultTable.from_rows(perplexity), {}, (), window=256, target=1024).sentences


OURS = [row("none", 256, 90), row("ours", 256, 90), row("ours", 512, 40), row("ours", 1024, 20)]


def test_methods_are_compared_on_the_same_documents() -> None:
    sentences = said([*OURS, row("yarn", 1024, 25), row("ours", 1024, 10, "long"), row("yarn", 1024, 12, "long")])
    assert any(
        "At 1,024 tokens, the longest length measured, its perplexity is 20.00: 20 %" in text for text in sentences
    )
    only_long = said([row("none", 256, 90), row("ours", 1024, 10, "long"), row("yarn", 1024, 20, "long")])
    assert any("its perplexity is 10.00: 50 % lower" in text for text in only_long)


def test_it_is_said_where_perplexity_rises_again() -> None:
    rises = said([*OURS, row("ours", 1024, 18, "long"), row("ours", 2048, 41, "long")])
    assert rises[0] == "Its perplexity falls up to 1,024 tokens and rises from there."
    # Those of other documents do not compare.
    assert "rises" not in "".join(said([*OURS, row("ours", 2048, 41, "long")]))
    assert "rises" not in "".join(said(OURS))


def test_the_verdict_comes_first_in_words_and_in_numbers() -> None:
    verdict = {"works_to": 256, "reads_to": 1024, "retrieves_to": 256, "sentences": ["Works.", "It reads."]}
    first = answer("tiny", ResultTable.from_rows(OURS), verdict, (), window=256)
    assert first.sentences[:2] == ("Works.", "It reads.")
    assert [(figure.value, figure.label) for figure in first.figures[:3]] == [
        ("256", "tokens that it works to, which is the window"),
        ("1,024", "tokens that it reads"),
        ("256", "tokens that it retrieves from, which is the window"),
    ]
