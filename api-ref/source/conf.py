"""Builds the API reference: `tox-like-scripts/docs` does, with the tools of doc/requirements.txt."""

project = "Function service API"
copyright = "the authors of Taibai"
author = "the authors of Taibai"
extensions = ["openstackdocstheme", "os_api_ref"]
exclude_patterns = ["samples"]

html_theme = "openstackdocs"
html_theme_options = {"sidebar_mode": "toc"}
html_show_sourcelink = False

openstackdocs_repo_name = "taibai"
openstackdocs_auto_name = False
openstackdocs_use_storyboard = False
