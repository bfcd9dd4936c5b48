"""`python jobs/export.py …` is `petseg export …`, also where the package is not installed."""

from petseg.jobs.export import run

run()
