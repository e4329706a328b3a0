"""The trainer: schedules, its lock, training windows, runs."""
