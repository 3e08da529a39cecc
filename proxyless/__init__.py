"""proxyless: a service mesh that is a Python library."""

__version__ = "0.1.0"
