"""What the API says about itself: the OpenAPI document and the page for people."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import pytest
from api_service import Service
from host_tests import host_required
from openapi_spec_validator import OpenAPIV31SpecValidator

from sandboxd.api.routes import METRICS_ROUTE, ROUTES

TRUE = {"image": "host", "command": ["/bin/true"]}


@pytest.fixture
def document(client: httpx2.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def schema(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}", "components": document["components"]}


def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()

    assert document["openapi"].startswith("3.1")


def test_the_document_has_every_route_and_no_other(document: dict[str, Any]) -> None:
    told = {(method.upper(), path) for path, item in document["paths"].items() for method in item}

    assert told == {(route.method, route.template) for route in (*ROUTES, METRICS_ROUTE)}
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)


def test_answers_are_as_the_document_says(client: httpx2.Client, document: dict[str, Any]) -> None:
    ended = client.post("/v1/jobs", json=TRUE, headers={"Prefer": "wait=20"}).json()
    accepted = client.post("/v1/jobs", json=TRUE).json()

    for value, name in (
        (ended, "JobView"),
        (accepted, "JobView"),
        (client.post("/v1/jobs?dry_run=1", json=TRUE).json(), "DryRunView"),
        (client.get("/v1/jobs").json(), "JobList"),
        (client.get(f"/v1/jobs/{ended['id']}/events").json(), "EventList"),
        (client.get("/v1/images").json(), "ImageList"),
        (client.get("/v1/whoami").json(), "IdentityView"),
        (client.post("/v1/keys", json={"name": "x"}).json(), "NewKeyView"),
        (client.get("/v1/keys").json(), "KeyList"),
        (client.post("/v1/jobs", json={}).json(), "Problem"),
    ):
        jsonschema.validate(value, schema(document, name))


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (TRUE, True),
        (TRUE | {"limits": {"memory": "1Mi"}, "stdin": {"base64": ""}}, True),
        (TRUE | {"imag": 1}, False),
        (TRUE | {"limits": {"memroy": 1}}, False),
        (TRUE | {"priority": 101}, False),
        ({"image": "host"}, False),
    ],
)
def test_the_documents_request_schema_agrees_with_the_service(
    document: dict[str, Any], body: dict[str, Any], good: bool
) -> None:
    assert (
        jsonschema.validators.Draft202012Validator(schema(document, "JobRequest")).is_valid(body)
        is good
    )


class _Page(HTMLParser):
    """Collects what a browser would fetch, and whether links within the page lead somewhere."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if identifier := values.get("id"):
            assert identifier not in self.ids
            self.ids.add(identifier)
        if tag == "a":
            self.links.add(values["href"] or "")
        self.fetched += [value or "" for name, value in attrs if name in ("src", "srcset", "data")]
        self.fetched += [tag] if tag in ("link", "script", "iframe", "object") else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(client: httpx2.Client) -> None:
    answer = client.get("/docs")
    page = _Page(answer.text)

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert page.open == []
    assert page.fetched == []
    assert not re.search(r"url\(|@import|https?://(?!127\.0\.0\.1)", answer.text)
    inner = {link.removeprefix("#") for link in page.links if link.startswith("#")}
    assert inner <= page.ids
    assert page.links - {f"#{name}" for name in inner} == {"/openapi.json"}


def test_the_page_allows_its_own_style_and_nothing_else(client: httpx2.Client) -> None:
    policy = client.get("/docs").headers["content-security-policy"]

    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_a_real_browser_applies_the_style_under_its_policy(
    service: Service, tmp_path: Path
) -> None:
    if shutil.which("chromium") is None:
        host_required("chromium is not installed")
    shot = tmp_path / "docs.png"
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    words += [f"--user-data-dir={tmp_path}/profile", "--window-size=1200,800"]
    words += ["--enable-logging=stderr", f"--screenshot={shot}", f"{service.url}/docs"]
    browser = subprocess.run(words, check=True, capture_output=True, text=True, timeout=100)

    assert shot.stat().st_size > 20_000
    assert "CONSOLE" not in browser.stderr, browser.stderr
