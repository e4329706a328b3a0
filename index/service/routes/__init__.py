"""The routes of the query service."""
