"""Other software that encodes texts, each run by its own Python (`benchmarks.peers.compare`)."""
