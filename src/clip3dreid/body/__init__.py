"""The 3D side: body models, their measures, poses and a renderer."""
