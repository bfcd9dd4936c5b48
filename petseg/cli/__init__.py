"""The command line: arguments to settings, errors to exit codes. No torch, no Ray."""
