"""What coordinator, client and command line share. Light to import: torch only in model, data and embedding."""

__version__ = "0.1.0"
