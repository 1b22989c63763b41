"""What a call will cost, before it is made: input tokens counted, output tokens by experience."""
