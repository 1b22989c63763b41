"""From the bytes of a request to a value that can be charged and answered."""
