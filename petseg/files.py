"""Names of files that jobs leave and other jobs look for."""

REPORT = "report.html"
"""The page of a run, an evaluation, a prediction or a check."""
