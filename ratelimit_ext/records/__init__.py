"""What operators see and change while workers run: denials, shadows, overrides, and all limits."""
