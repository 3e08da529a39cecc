"""Istio YAML as typed resources with places: load, check, explain.

``model`` holds the shapes, ``loader`` reads files into them, ``references`` compares resources with each other.
"""
