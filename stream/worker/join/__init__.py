"""The join: merges parts into records."""
