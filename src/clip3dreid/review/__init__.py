"""Look at finished runs, with their pictures and checkpoints where these are there, and report what there is."""
