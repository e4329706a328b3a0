"""The embed worker: reads records, encodes micro-batches, publishes in transactions."""
