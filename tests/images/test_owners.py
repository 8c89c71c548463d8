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


@pytest.mark.attack(71)
def test_what_a_name_means_to_one_tenant_no_other_s_pull_changes(
    stub: Stub, images: ImageBench
) -> None:
    """The registry answers each of them something else, as one does whose tags move, or that looks at who asks."""
    reference = stub.offer(PRIVATE)
    fetch(images, reference, owner="acme")
    others = {
        owner: make_image(BASE, packed(entry(owner or "all"))) for owner in ("evil", "", "other")
    }
    for owner, image in others.items():
        stub.offer(image)
        fetch(images, reference, owner=owner)
    digests = {"acme": PRIVATE.digest, "third": others[""].digest}
    digests |= {owner: others[owner].digest for owner in ("evil", "other")}

    for tenant, digest in digests.items():
        assert images.bench.do(images.images.resolve(reference, tenant)).digest == digest
        listed = images.bench.do(images.images.list(tenant))
        assert [(each.name, each.digest) for each in listed[1:]] == [(reference, digest)]
    assert images.images.record(reference).digest == others[""].digest
    assert len(images.bench.do(images.images.list())) == 5
    images.images.close()
    images.bench.do(images.images.remove(reference))
    for tenant in digests:
        with pytest.raises(NotFound):
            images.bench.do(images.images.resolve(reference, tenant))
    assert images.images.trees.keys() == []


def test_the_operator_sees_whose_an_image_is_that_several_were_shown(
    stub: Stub, images: ImageBench
) -> None:
    reference = stub.offer(PRIVATE)
    for owner in ("acme", "other"):
        fetch(images, reference, owner=owner)

    listed = images.bench.do(images.images.list())

    assert [each.name for each in listed[1:]] == [reference]
    assert images.images.record(reference).tenants == ("acme", "other")
    assert images.images.record(reference, "acme").tenants == ("acme",)
    assert images.bench.do(images.images.prune(all=True)).names == [reference, reference]
    assert images.images.trees.keys() == []


def test_an_import_is_not_taken_for_another_whose_name_goes_on_after_a_dot(
    images: ImageBench,
) -> None:
    for name in ("tools", "tools.old"):
        images.load(packed(entry(name)), name)

    images.bench.do(images.images.remove("tools"))

    assert set(images.tree("tools.old")) == {"tools.old"}
