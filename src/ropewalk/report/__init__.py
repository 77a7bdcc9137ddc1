"""Plots and the one-page report of a run."""

from ropewalk.report.page import Origin, write_report

__all__ = ["Origin", "write_report"]
