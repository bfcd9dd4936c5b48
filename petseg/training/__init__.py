"""Training: the loop, the data and the step of one worker, and the run folder."""
