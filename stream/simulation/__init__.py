"""What a cluster would do, by the measured costs of each step."""
