"""Say body shapes in words: vocabulary, labels, sentences, queries."""
