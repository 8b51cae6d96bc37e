"""The report: one page that shows a run."""

from trainers.report.report import Report

__all__ = ["Report"]
