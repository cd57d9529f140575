"""How ranks talk: one protocol, a backend a file."""
