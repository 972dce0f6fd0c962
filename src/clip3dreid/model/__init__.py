"""Students: backbones, pooling, necks, and the weights they start from."""
