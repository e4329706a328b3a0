"""Encoders: text, pictures and sounds to features; the registry of kinds."""
