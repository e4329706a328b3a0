"""The index node: vectors become searchable; generations are opened and flipped."""
