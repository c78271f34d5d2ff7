"""Clients of the judge's server: Python objects and files of pairs."""
