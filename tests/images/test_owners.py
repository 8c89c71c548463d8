"""What a registry shows to one tenant's credentials is nobody else's, also for who knows its digests."""

import json

import pytest
from archives import entry, packed
from image_bench import ImageBench
from pulls import fetch
from registries import Stub, make_image

from sandboxd.errors import NotFound
from sandboxd.images.contents import read_contents

pytestmark = pytest.mark.host

BASE = packed(entry("base", b"b"))
SECRET = packed(entry("secret", b"s"))
PRIVATE = make_image(BASE, SECRET)


def offer_without_layers(stub: Stub, name: str) -> str:
    """What somebody can offer who knows all digests of an image, and has none of its layers."""
    reference = stub.offer(PRIVATE, name)
    config = json.loads(PRIVATE.manifest)["config"]["digest"]
    for path in list(stub.routes):
        if path.startswith(f"/v2/{name}/blobs/") and not path.endswith(config):
            stub.routes[path] = lambda handler: handler.answer(404, b"")
    return reference


@pytest.mark.parametrize("owner", ["", "other"])
@pytest.mark.attack(67)
def test_who_names_layers_of_anothers_image_has_to_have_them(
    owner: str, stub: Stub, images: ImageBench
) -> None:
    fetch(images, stub.offer(PRIVATE), owner="acme")
    stolen = offer_without_layers(stub, "evil/tools")

    with pytest.raises(NotFound):
        fetch(images, stolen, owner=owner)

    assert fetch(images, stolen, owner="acme").digest == PRIVATE.digest


def test_what_is_everybodys_stays_apart_from_what_is_one_tenants(
    stub: Stub, images: ImageBench
) -> None:
    fetch(images, stub.offer(make_image(BASE), "open/base"))
    stolen = offer_without_layers(stub, "evil/tools")

    with pytest.raises(NotFound):
        fetch(images, stolen, owner="acme")

    assert len(images.images.trees.keys()) == 1


def test_what_is_one_tenants_can_be_passed_on_and_goes_with_its_name(
    stub: Stub, images: ImageBench
) -> None:
    private = stub.offer(PRIVATE)
    fetch(images, private, owner="acme")
    shared = fetch(images, stub.offer(PRIVATE, "open/tools"))

    contents = images.bench.do(read_contents(images.images, private))
    both = images.images.blobs.sizes()
    images.bench.do(images.images.remove(private))
    left = images.images.blobs.sizes()

    assert contents.descriptor.digest == shared.digest == PRIVATE.digest
    assert images.tree(str(shared.name))["secret"][4] == "s"
    assert len(both) == 2 * len(left)
    assert not [key for key in left if "." in key]
    assert len(images.images.trees.keys()) == 2


def test_an_image_that_is_shown_to_two_tenants_is_for_both(stub: Stub, images: ImageBench) -> None:
    private = stub.offer(PRIVATE)
    fetch(images, private, owner="acme")
    fetch(images, private, owner="other")

    for tenant in ("acme", "other"):
        assert images.bench.do(images.images.resolve(private, tenant)).digest == PRIVATE.digest
    with pytest.raises(NotFound):
        images.bench.do(images.images.resolve(private, "third"))
