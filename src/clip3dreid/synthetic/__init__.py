"""The rendered world: people, clothes, cameras, places, and data sets of them in the layouts of real ones."""
