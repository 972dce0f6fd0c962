"""Read a folder into a manifest, and a manifest into batches."""
