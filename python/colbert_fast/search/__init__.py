"""Searching an index: parameters, the pipeline, results and their explanation."""
