"""Builds the release notes: `tox-like-scripts/docs` does, with the tools of doc/requirements.txt."""

project = "Taibai's release notes"
copyright = "the authors of Taibai"
author = "the authors of Taibai"
extensions = ["openstackdocstheme", "reno.sphinxext"]

html_theme = "openstackdocs"
html_show_sourcelink = False

openstackdocs_repo_name = "taibai"
openstackdocs_auto_name = False
openstackdocs_use_storyboard = False
