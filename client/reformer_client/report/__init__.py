"""Scores one can look at: a page for the browser, and a summary for notebooks."""

from reformer_client.report.page import page
from reformer_client.report.summary import summary

__all__ = ["page", "summary"]
