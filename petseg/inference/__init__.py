"""Prediction without Ray: the predictor, and the resumable output of shards."""
