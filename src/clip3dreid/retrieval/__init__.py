"""Rank galleries and score the ranks under a named protocol."""
