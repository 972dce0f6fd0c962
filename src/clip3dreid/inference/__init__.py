"""Use a trained model: features, words, body shapes."""
