"""Protocols, ranking and metrics: from features and labels to numbers that name their protocol."""
