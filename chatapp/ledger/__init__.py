"""What each call used and cost: a row per call, written by a thread of its own."""
