"""Processes on one machine: children, embedded services, supervision."""
