"""Versions: of the program and of the file format it writes."""

__version__ = "0.1.0"
FORMAT_VERSION = 1
