"""Reminders, and what rings when they are due."""
