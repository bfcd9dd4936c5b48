"""`python jobs/predict.py …` is `petseg predict …`, also where the package is not installed."""

from petseg.jobs.predict import run

run()
