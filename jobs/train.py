"""`python jobs/train.py …` is `petseg train …`, also where the package is not installed."""

from petseg.jobs.train import run

run()
