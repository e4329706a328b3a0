"""Sources: messages of any topic, decoded and mapped to records."""
