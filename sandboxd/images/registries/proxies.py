"""Proxies: through whom a host is spoken to."""

import os
import urllib.request

from sandboxd.settings_registries import DIRECT, FROM_ENVIRONMENT


def proxy_for(setting: str, scheme: str, host: str, port: int) -> str | None:
    """The URL of the proxy for a host, by what the settings say; None: there is none.

    Of the environment: `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, in either case, as Python and curl read them.
    """
    if setting in ("", DIRECT):
        return None
    if setting != FROM_ENVIRONMENT:
        return setting
    proxies = urllib.request.getproxies_environment()
    if urllib.request.proxy_bypass(f"{host}:{port}", proxies):
        return None
    if "REQUEST_METHOD" in os.environ and scheme == "http":
        return None  # There it may be a header of somebody's request (CVE-2016-1000110).
    found = proxies.get(scheme)
    return found if found is None or "://" in found else f"http://{found}"
