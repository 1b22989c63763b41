"""What was written: decorators, settings and policies, checked and kept for the resolver."""
