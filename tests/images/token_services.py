"""A token service for Debian's docker-registry: JSON web tokens signed with RS256, over HTTPS.

https://distribution.github.io/distribution/spec/auth/jwt/
"""

import base64
import json
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from certificates import Authority
from registries import BASIC, Handler, Stub

SERVICE, ISSUER = "a registry of the tests", "its token service"
LEEWAY_SECONDS = 60
"""So much longer than it says the registry takes a token."""
IDENTITY_TOKEN = "an identity token"


class TokenService:
    """Gives tokens to who has the password (`Authorization`) or the identity token."""

    def __init__(self, stub: Stub, directory: Path, authority: Authority) -> None:
        self._key, self._certificate = authority.sign_tokens()
        self.stub = stub
        self.valid_seconds = 300.0
        """From when it is given to when the registry takes it no more."""
        self.told_seconds: float | None = None
        """If not that."""
        stub.speak_tls(*authority.certify("127.0.0.1"))
        stub.routes["/token"] = self._answer
        self.settings = {
            "realm": f"https://{stub.authority}/token",
            "service": SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": str(authority.certificate),
        }

    def sign(self, name: str, *actions: str) -> str:
        return self._signed({name: list(actions)})

    def _signed(self, granted: dict[str, list[str]]) -> str:
        """Of each repository what may be done."""
        now = time.time()
        claims = {
            "iss": ISSUER,
            "sub": "somebody",
            "aud": SERVICE,
            "exp": int(now + self.valid_seconds - LEEWAY_SECONDS),
            "nbf": int(now - 1000),
            "iat": int(now - 1000),
            "jti": str(now),
            "access": [
                {"type": "repository", "name": name, "actions": actions}
                for name, actions in granted.items()
            ],
        }
        certificate = ssl.PEM_cert_to_DER_cert(self._certificate.read_text())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(certificate).decode()]}
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self._key)],
            input=signed.encode(),
            capture_output=True,
            check=True,
        ).stdout
        return f"{signed}.{_encoded(signature)}"

    def given(self) -> int:
        return len(self.stub.asked)

    def _answer(self, handler: Handler) -> None:
        asked = self.stub.asked[-1]
        query = parse_qs(asked.content.decode() or asked.path.partition("?")[2])
        if asked.method == "POST":
            known = query["refresh_token"] == [IDENTITY_TOKEN]
        else:
            known = asked.headers.get("authorization") == BASIC
        scopes = [scope.split(":") for each in query["scope"] for scope in each.split(" ")]
        if query["service"] != [SERVICE] or not known:
            handler.answer(401, b"{}")
            return
        answer: dict[str, Any] = {
            "access_token": self._signed({name: actions.split(",") for _, name, actions in scopes}),
            "expires_in": self.told_seconds or self.valid_seconds,
        }
        handler.answer(200, json.dumps(answer).encode())


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
