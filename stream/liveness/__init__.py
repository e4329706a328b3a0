"""Progress of a process, its watchdog, and its bounded end."""
