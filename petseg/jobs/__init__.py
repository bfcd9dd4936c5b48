"""Implementation of the commands, one module each. `main` parses the flags, runs the job and prints a summary."""
