"""The run as one HTML page, made to be looked at and passed on."""

from rlaif.report.html import write_report

__all__ = ["write_report"]
