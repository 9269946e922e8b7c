"""Builds the API reference: `tox-like-scripts/docs` does, with the tools of doc/requirements.txt."""

project = "Function service API"
copyright = "the authors of Taibai"
author = "the authors of Taibai"
extensions = ["openstackdocstheme", "os_api_ref"]
exclude_patterns = ["samples"]

html_theme = "openstackdocs"
# Nobody is told who reads.
html_theme_options = {"analytics_tracking_code": "", "root_title": "Taibai", "sidebar_mode": "toc"}
html_show_sourcelink = False

openstackdocs_repo_name = "taibai"
openstackdocs_auto_name = False
openstackdocs_use_storyboard = False
