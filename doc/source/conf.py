"""Builds the documents: `tox-like-scripts/docs` does, with the tools of doc/requirements.txt."""

import os
import sys

sys.path.insert(0, os.path.abspath("_ext"))

project = "Taibai"
copyright = "the authors of Taibai"
author = "the authors of Taibai"
extensions = ["openstackdocstheme", "myst_parser", "taibai_reference"]
exclude_patterns = ["_ext"]

# Headings can be linked to, `page.md#heading`, as on the sites that show the files themselves.
myst_heading_anchors = 3
# Files beside the documents, such as examples, are links to the repository's own pages.
myst_all_links_external = False

html_theme = "openstackdocs"
# Nobody is told who reads.
html_theme_options = {"analytics_tracking_code": "", "root_title": "Taibai"}
html_show_sourcelink = False

openstackdocs_repo_name = "taibai"
openstackdocs_auto_name = False
openstackdocs_use_storyboard = False
