"""Django: a project whose only app is itself."""
