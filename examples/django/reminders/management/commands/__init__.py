"""`remind`."""
