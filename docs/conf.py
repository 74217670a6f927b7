"""
How Sphinx builds these pages: `make docs`.

It refuses to publish a table of the contract that was taken with other adapters than those that are
here.
"""

import json
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from servers.contract import record

project = "engine_bridge"
author = "The engine_bridge authors"
extensions = ["myst_parser"]
myst_heading_anchors = 4  # links to headings, as GitHub resolves them
# README.md is no page, and tests/test_guides.py sees to links.
suppress_warnings = ["myst.xref_missing"]
html_theme = "furo"
html_title = project
html_copy_source = False


def check_contract(app: Sphinx) -> None:
    """Warn when the table is older than the adapters; `make docs` takes that for an error."""
    taken_with = json.loads(record.RECORD.read_text())["adapters"]
    if taken_with != record.fingerprint():
        logging.getLogger(__name__).warning(
            "docs/servers/contract.md is older than the adapters that it tells of: "
            "`make contract` takes it anew, and both of its files belong to the commit"
        )


def setup(app: Sphinx) -> None:
    """Check before anything is built."""
    app.connect("builder-inited", check_contract)
