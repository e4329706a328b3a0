"""Dead letters: read, selected, sent to their origin again."""
