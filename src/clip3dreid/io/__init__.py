"""Read and write files, check values, ask the machine."""
