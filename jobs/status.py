"""`python jobs/status.py …` is `petseg status …`, also where the package is not installed."""

from petseg.jobs.status import run

run()
