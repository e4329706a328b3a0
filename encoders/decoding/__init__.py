"""Decoding of files to pixels and samples, within limits, in child processes where enabled."""
