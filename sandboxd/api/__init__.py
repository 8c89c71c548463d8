"""The HTTP API: one table of routes, wire schemas, authentication, problems and streams."""
