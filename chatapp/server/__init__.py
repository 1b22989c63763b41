"""Our gunicorn worker and master, and the last valid files."""
