"""Body models, poses, measures and a renderer."""
