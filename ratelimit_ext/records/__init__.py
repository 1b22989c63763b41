"""What operators see and change while workers run: denials, trials, overrides, and all limits."""
