"""Turn results into tables, figures and pages, without torch."""
