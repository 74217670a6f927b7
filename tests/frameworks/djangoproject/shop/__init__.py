"""An app with an `engine` module."""
