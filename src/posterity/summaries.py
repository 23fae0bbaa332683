"""What the chains of a run say, in numbers."""

from ._analysis.summaries import Row, Summary, summarize

__all__ = ["Row", "Summary", "summarize"]
