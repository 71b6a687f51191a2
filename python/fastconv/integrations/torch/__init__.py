"""fastconv inside PyTorch: `convert` makes the modules of a model run in fastconv."""

from .convert import Entry, Report, convert, refresh, report

__all__ = ["Entry", "Report", "convert", "refresh", "report"]
