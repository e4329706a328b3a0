"""Limits that a request passes before its route: hosts, keys, rates, sizes, time."""
