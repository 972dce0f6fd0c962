"""From a folder on disk to a manifest table to batches."""
