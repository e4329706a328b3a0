"""Encoders of imported models: the network and the preprocessing of another library, unchanged."""
