"""Data sets that become records."""
