"""The 3D side: body models, their measures, a renderer, and the embedded world of rendered people."""
