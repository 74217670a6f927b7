"""Tests of the project, for `manage.py test`; they need no engine."""

from io import BytesIO
from unittest.mock import Mock

from django.test import Client, SimpleTestCase, TestCase
from project.wsgi import application


class SaleTest(TestCase):  # type: ignore[misc]  # Django carries no types
    """Something can be sold."""

    def test_client(self) -> None:
        """Django's client gets an answer."""
        assert Client().get("/sale").content == b"1"


class ApplicationTest(SimpleTestCase):  # type: ignore[misc]  # as above
    """The application of `wsgi.py` can be called."""

    def test_application(self) -> None:
        """It answers."""
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/state",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "wsgi.input": BytesIO(),
            "wsgi.url_scheme": "http",
        }
        assert list(application(environ, Mock())) == [b""]
