"""Files, processes and what the machine is asked."""
