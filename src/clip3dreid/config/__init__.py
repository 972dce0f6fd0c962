"""Hydra: command lines, run folders, and objects made of config nodes."""
