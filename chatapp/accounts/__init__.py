"""Who calls: users, their plans, and the API keys that they show."""
