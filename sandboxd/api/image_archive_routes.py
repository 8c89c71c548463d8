"""The part of the table of routes that is about images on their way to others and from them.

It stands before that of images: there a name may have slashes in it, and takes what follows it for more of it.
"""

from http import HTTPStatus

from sandboxd.api import image_archives
from sandboxd.api.auth import ADMIN, JOBS_READ
from sandboxd.api.image_archive_schemas import (
    CommitRequest,
    ImageHistory,
    PushedView,
    PushRequest,
    TagRequest,
)
from sandboxd.api.images import OFFERED
from sandboxd.api.resources import Parameter, Reply, Route
from sandboxd.api.schemas import ImageList, ImageView
from sandboxd.images.saving import FORMATS

_GROUP = "Images"
_ONE = "/v1/images/{name:path}"
_ARCHIVE = {"type": "string", "format": "binary"}

IMAGE_ARCHIVE_ROUTES = (
    Route(
        method="POST",
        path="/v1/images/load",
        handler=image_archives.load,
        group=_GROUP,
        summary="Make images of all that is in an archive",
        description=(
            "The body is the archive, as `docker save`, podman and skopeo write it, or an OCI layout in a tar; it may be compressed by gzip "
            "or zstd. Images are called what it says, and replace those of the same name."
        ),
        scope=ADMIN,
        other_requests={image_archives.TAR: _ARCHIVE},
        parameters=(
            Parameter(name="name", description="What the archive's only image is to be called."),
        ),
        replies=(Reply(status=HTTPStatus.OK, description="They are here.", body=ImageList),),
    ),
    Route(
        method="POST",
        path="/v1/images/import",
        handler=image_archives.import_,
        group=_GROUP,
        summary="Make an image of a root file system",
        description="The body is a tar, plain or compressed by gzip, bzip2, xz or zstd. An image of that name is replaced.",
        scope=ADMIN,
        other_requests={image_archives.TAR: _ARCHIVE},
        parameters=(Parameter(name="name", description="What it is to be called: one word."),),
        replies=(Reply(status=HTTPStatus.CREATED, description="It is here.", body=ImageView),),
    ),
    Route(
        method="GET",
        path=f"{_ONE}/archive",
        handler=image_archives.archive,
        group=_GROUP,
        summary="Save an image into an archive",
        description="Docker, podman, skopeo and `POST /v1/images/load` read it. Configuration and layers keep their digests.",
        scope=ADMIN,
        parameters=(
            Parameter(
                name="format",
                description="`docker`: with Docker's index, too; `oci`: an OCI layout alone.",
                schema={"enum": list(FORMATS), "default": FORMATS[0]},
            ),
        ),
        replies=(
            Reply(
                status=HTTPStatus.OK,
                description="The archive.",
                media_types=(image_archives.TAR,),
            ),
        ),
    ),
    Route(
        method="POST",
        path=f"{_ONE}/tag",
        handler=image_archives.tag,
        group=_GROUP,
        summary="Give an image another name",
        scope=ADMIN,
        request=TagRequest,
        replies=(Reply(status=HTTPStatus.CREATED, description="By its new name.", body=ImageView),),
    ),
    Route(
        method="POST",
        path=f"{_ONE}/push",
        handler=image_archives.push,
        group=_GROUP,
        summary="Send an image to a registry",
        description=(
            "How far each layer is as lines or events, by `Accept`, as of a pull, and last what the registry has; with `Accept: "
            "application/json` that alone, when it is there. Credentials are those of the settings. Who hangs up ends it."
        ),
        scope=ADMIN,
        request=PushRequest,
        replies=(
            Reply(
                status=HTTPStatus.OK,
                description="The progress; or what is there.",
                body=PushedView,
                media_types=OFFERED,
            ),
        ),
    ),
    Route(
        method="GET",
        path=f"{_ONE}/history",
        handler=image_archives.history,
        group=_GROUP,
        summary="Show how an image was made",
        description="In its author's words: nobody has checked them.",
        scope=JOBS_READ,
        replies=(Reply(status=HTTPStatus.OK, description="Its steps.", body=ImageHistory),),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{sandbox_id}/commit",
        handler=image_archives.commit,
        group="Sandboxes",
        summary="Make an image of a sandbox",
        description=(
            "What its commands changed becomes a layer above those of its image. Sockets, devices and FIFOs are left out, as is what is not "
            "of its file system (`/proc`, `/dev`). 409 for a sandbox of image `host`, or if its image is another one now."
        ),
        scope=ADMIN,
        request=CommitRequest,
        replies=(Reply(status=HTTPStatus.CREATED, description="The image.", body=ImageView),),
    ),
)
