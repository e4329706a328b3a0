"""The query service: HTTP in front of a vector store."""
