"""Score a network on labelled photos."""
