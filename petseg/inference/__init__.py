"""Prediction without Ray: the predictor and the resumable, sharded output."""
