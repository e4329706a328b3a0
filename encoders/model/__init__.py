"""The model of a version: encoders, projection, fusion, heads, decision; its folder."""
