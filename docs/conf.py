"""The site: ``pip install -e '.[docs]' && sphinx-build -W docs docs/_build``."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "extensions")]

import learnreg

project = "learnreg"
author = copyright = "The learnreg developers"
version = release = learnreg.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "learnreg_site"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"learnreg {release}"
highlight_language = "bash"
myst_heading_anchors = 3
napoleon_custom_sections = [("Source", "notes_style"), "Law", "Laws"]
napoleon_use_rtype = False
autodoc_inherit_docstrings = False  # those of Lightning and of torch need their own roles
autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"
