"""Names of files that one job writes and another reads."""

REPORT = "report.html"
"""File name of the HTML report of a training run, an evaluation, a prediction or a check."""
