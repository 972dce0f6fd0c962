"""Make what guides a training: words, teacher, bodies."""
