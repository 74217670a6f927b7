"""A Django project for the tests; they run a copy of it."""
