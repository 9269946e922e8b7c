"""Builds the release notes: `tox-like-scripts/docs` does, with the tools of doc/requirements.txt."""

project = "Taibai's release notes"
copyright = "the authors of Taibai"
author = "the authors of Taibai"
extensions = ["openstackdocstheme", "reno.sphinxext"]

html_theme = "openstackdocs"
# Nobody is told who reads.
html_theme_options = {"analytics_tracking_code": "", "root_title": "Taibai"}
html_show_sourcelink = False

openstackdocs_repo_name = "taibai"
openstackdocs_auto_name = False
openstackdocs_use_storyboard = False
