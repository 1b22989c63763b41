"""Rate limiting for Flask applications that call language models."""
