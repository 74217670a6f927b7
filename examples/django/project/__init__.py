"""A project that rings when reminders are due."""
