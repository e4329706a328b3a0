"""Linked files, thumbnails and snippets."""
