"""The join: parts become records."""
