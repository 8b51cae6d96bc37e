"""The report: one page that shows a run."""

from trainers.report.report import Report as Report
