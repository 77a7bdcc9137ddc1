"""Test perplexity of what a search would have given, had it been stopped earlier."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from ropewalk.report.style import groups, legend, log_y, panels_of
from ropewalk.rope import RopeScaling
from ropewalk.search.history import SearchResult

SHARES = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Shares of all tokens that a search spent, at which its curve is read."""
STYLES = {
    "hybrid": ("#d55e00", "-", "o"),
    "gradient": ("#009e73", "-", "s"),
    "evolution": ("#cc79a7", "-", "*"),
    "paper": ("#222222", "--", "X"),
    "tpe": ("#56b4e9", "-", "^"),
    "cmaes": ("#e69f00", "-", "v"),
    "random": ("#8a8a8a", ":", "P"),
    "longrope2": ("#7a5195", "-", "<"),
}


def of_search(result: SearchResult, *, window: int) -> list[tuple[int, RopeScaling]]:
    """Tokens spent and the point that a search would have ended with then; none before the first one is read whole.

    That is the best one read whole, or where the gradient is: a step's loss is of rows of its own, so that the path's
    last point counts until a trial is read after it.
    """
    target = result.best.target_length
    found: list[tuple[int, RopeScaling]] = []
    for share in SHARES:
        spent = [row for row in result.rows if row["tokens"] <= share * result.forward_tokens]
        whole = [row for row in spent if row["phase"] != "gradient" and row["loss"] is not None]
        if share == 1.0:
            found.append((result.forward_tokens, result.best))
        elif spent and spent[-1]["phase"] == "gradient":
            found.append((spent[-1]["tokens"], _point(spent[-1], window, target)))
        elif whole:
            best = min(whole, key=lambda row: float(row["loss"]))
            found.append((spent[-1]["tokens"], _point(best, window, target)))
    return found


def _point(row: dict[str, Any], window: int, target: int) -> RopeScaling:
    factors = tuple(value for name, value in row.items() if name.startswith("lambda_"))
    return RopeScaling(factors, window, target, attention_factor=row["attention_factor"], n_hat=row["n_hat"])


def figure(rows: Sequence[dict[str, Any]], *, targets: Sequence[int]) -> Figure:
    """One panel for each target: a line through the mean of the seeds, a band from the best to the worst of them."""
    drawn, grid = panels_of(len(targets), columns=2 if len(targets) > 1 else 1, height=4.4)
    handles: dict[str, Any] = {}
    for target, axes in zip(targets, grid, strict=True):
        own = [row for row in rows if row["target"] == target]
        searched = groups(
            (row for row in own if row["group"] == "equal" and row.get("curve")), lambda row: row["choice"]
        )
        for choice, (colour, line, marker) in STYLES.items():
            if choice not in searched:
                continue
            # Seeds differ a little in the tokens of a share: mean of both.
            shares = [tuple(zip(*points, strict=True)) for points in zip(*_tails(searched[choice]), strict=True)]
            tokens = [sum(spent) / len(spent) for spent, _ in shares]
            mean = [sum(values) / len(values) for _, values in shares]
            default = choice == "hybrid"
            (handles[choice],) = axes.plot(
                tokens, mean, line, color=colour, marker=marker, markersize=6, linewidth=2.6 if default else 1.5,
                zorder=4 if default else 3,
            )  # fmt: skip
            low, high = [min(values) for _, values in shares], [max(values) for _, values in shares]
            axes.fill_between(tokens, low, high, color=colour, alpha=0.15, linewidth=0)
        for row in own:
            if row["group"] == "closed" and row["choice"] == "yarn":
                label = "YaRN, no search"
                handles[label] = axes.axhline(row["test_perplexity"], color="#0072b2", linestyle="-.", linewidth=1.2)
        values = [value for rows in searched.values() for row in rows for _, value in row["curve"]]
        log_y(axes, values or [1.0, 2.0])
        axes.set_title(f"{target:,} tokens", fontsize=11, loc="left")
        axes.set_xlabel("tokens spent, in evaluations of one candidate")
        axes.set_ylabel("perplexity, test documents (log scale)")
    legend(drawn, handles)
    return drawn


def _tails(rows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """The curves from where all of them have begun."""
    common = min(len(row["curve"]) for row in rows)
    return [row["curve"][-common:] for row in rows]
