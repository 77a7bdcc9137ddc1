"""Plots and the one-page report of a run."""

from ropewalk.report.page import write_report

__all__ = ["write_report"]
