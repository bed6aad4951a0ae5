"""Widgets for JupyterLab: look through a run, follow one that trains."""
