"""Engines that run an encoder's trunk while serving: torch, ONNX Runtime, OpenVINO."""
