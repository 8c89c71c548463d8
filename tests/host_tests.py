"""What tests do on a host that lacks what they need."""

import os
from typing import NoReturn

import pytest


def host_required(reason: str) -> NoReturn:
    """Skip; or fail where the host is known to be prepared (`SANDBOXD_HOST_TESTS=required`)."""
    if os.environ.get("SANDBOXD_HOST_TESTS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)
