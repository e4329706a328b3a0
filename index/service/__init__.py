"""The query service: an HTTP API in front of a vector store."""
