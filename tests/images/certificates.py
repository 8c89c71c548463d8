"""Certificates of a test's own authority, made by openssl."""

import subprocess
from pathlib import Path


class Authority:
    """Somebody who certifies."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key, self.certificate = directory / "authority.key", directory / "authority.pem"
        _openssl(
            "req",
            "-x509",
            *_NEW,
            "-days",
            "2",
            "-subj",
            "/CN=test",
            "-keyout",
            self._key,
            "-out",
            self.certificate,
        )

    def certify(self, name: str) -> tuple[Path, Path]:
        """Key and certificate for a host's name or address."""
        kind = "IP" if name.replace(".", "").isdigit() else "DNS"
        return self._made(name, f"{kind}:{name}", _NEW)

    def _made(self, name: str, called: str, new: tuple[str, ...]) -> tuple[Path, Path]:
        key, certificate, request, extensions = (
            self._directory / f"{name}.{kind}" for kind in ("key", "pem", "csr", "ext")
        )
        extensions.write_text(f"subjectAltName={called}\n")
        _openssl("req", *new, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        _openssl(
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            self.certificate,
            "-CAkey",
            self._key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            extensions,
            "-out",
            certificate,
        )
        return key, certificate

    def sign_tokens(self) -> tuple[Path, Path]:
        """Key (RSA) and certificate of somebody who signs tokens."""
        return self._made("signer", "DNS:signer", ("-newkey", "rsa:2048", "-nodes"))


_NEW = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
