"""One module per command: `main` parses, builds, runs and reports."""
