"""Evaluating a version: figures, robustness, whether a modality is used, a map, a page."""
