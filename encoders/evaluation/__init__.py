"""Evaluation of a version: figures, the judge, compatibility of spaces, a report."""
