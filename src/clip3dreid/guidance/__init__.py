"""What guides a training beside pictures and identities."""
