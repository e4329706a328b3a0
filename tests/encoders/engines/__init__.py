"""Engines that replace torch while serving."""
