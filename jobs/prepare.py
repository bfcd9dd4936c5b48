"""`python jobs/prepare.py …` is `petseg prepare …`, also where the package is not installed."""

from petseg.jobs.prepare import run

run()
