"""How the pages are built: `make docs`, or `sphinx-build -W docs docs/_build`."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "torch-surgery"
author = "the torch-surgery authors"
project_copyright = "the torch-surgery authors; Apache-2.0"
release = importlib.metadata.version("torch-surgery")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "generated",
]
exclude_patterns = ["_build"]
# Two values are called Step: one of a plan, one of a recipe.
suppress_warnings = ["ref.python"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "fully-qualified"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "torch-surgery"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
