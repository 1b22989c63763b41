"""Users, their plans and their API keys."""
