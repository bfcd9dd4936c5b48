"""`python jobs/evaluate.py …` is `petseg evaluate …`, also where the package is not installed."""

from petseg.jobs.evaluate import run

run()
