"""A rootless sandbox runner with a serverless HTTP API."""

__version__ = "0.1.0"
