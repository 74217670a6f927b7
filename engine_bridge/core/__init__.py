"""The engine. Standard library only."""
