"""The local vector store: growing blocks, sealed segments, search, snapshots."""
