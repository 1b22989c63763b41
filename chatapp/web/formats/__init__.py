"""Wire formats: one vendor a file, with its errors, headers, answers and streams."""
