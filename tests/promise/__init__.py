"""What releases promise: docs/reference/promise.md."""
