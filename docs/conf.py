"""
How Sphinx builds these pages: `make docs`.

It refuses to publish a table of the contract that was taken with other adapters than those that are
here.
"""

import json
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from servers.contract import record

project = "engine_bridge"
author = "The engine_bridge authors"
extensions = ["myst_parser"]
myst_heading_anchors = 4  # links to headings, as GitHub resolves them
suppress_warnings = [
    "myst.xref_missing"
]  # README.md is no page; tests/test_guides.py sees to links
html_theme = "furo"
html_title = project
html_copy_source = False


def check_contract(app: Sphinx, config: Config) -> None:
    """Fail when the table of the contract is older than the adapters."""
    taken_with = json.loads(record.RECORD.read_text())["adapters"]
    if taken_with != record.fingerprint():
        raise ConfigError(
            "docs/servers/contract.md is older than the adapters that it tells of: "
            "`make contract` takes it anew, and both of its files belong to the commit"
        )


def setup(app: Sphinx) -> None:
    """Check before anything is built."""
    app.connect("config-inited", check_contract)
