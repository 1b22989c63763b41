"""The way of one request: where it meets its limits, its decision, its state and its answer."""
