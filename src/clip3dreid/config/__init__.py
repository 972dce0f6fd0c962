"""Hydra: command lines, typed settings, objects from nodes."""
