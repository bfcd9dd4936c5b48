"""Scores of a network on labelled photos."""
