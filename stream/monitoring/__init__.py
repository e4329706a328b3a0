"""Metrics, heartbeats, drift, and the comparison of a canary with the champion."""
