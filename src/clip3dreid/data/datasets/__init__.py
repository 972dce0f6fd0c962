"""One file a data set: each holds a function from a folder to a `Manifest`."""
