"""The HTTP side of chatapp: one blueprint a file, and the shape of its errors."""
