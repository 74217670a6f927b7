"""A Flask application without an engine, which answers as `alone.py` does."""

from flask import Flask
from servers.apps.alone import wsgi

app = Flask(__name__)
app.wsgi_app = wsgi  # type: ignore[method-assign]  # as Flask's documentation says
