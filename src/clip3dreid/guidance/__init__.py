"""Guide a training by words, a teacher and bodies, beside pictures and identities."""
