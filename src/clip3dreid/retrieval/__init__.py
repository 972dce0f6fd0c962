"""Evaluate retrieval: protocols, ranking and metrics, from features and labels to numbers."""
