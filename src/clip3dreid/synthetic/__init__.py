"""Render a world of people who change their clothes."""
