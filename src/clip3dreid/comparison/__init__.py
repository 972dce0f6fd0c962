"""Compare runs: find them, test their differences, write the page."""
