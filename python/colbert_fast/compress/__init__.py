"""Centroids, residual codec and token pooling: from float vectors to a few bytes per token."""
