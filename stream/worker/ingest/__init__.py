"""`braid ingest`: topics of others become `records`."""
