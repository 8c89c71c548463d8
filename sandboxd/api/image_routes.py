"""The part of the table of routes that is about images."""

from http import HTTPStatus

from sandboxd.api import images
from sandboxd.api.auth import ADMIN, JOBS_READ, JOBS_WRITE
from sandboxd.api.image_schemas import ImageDetailView, PrunedView, PruneRequest, PullRequest
from sandboxd.api.resources import Reply, Route
from sandboxd.api.schemas import ImageList, ImageView

_GROUP = "Images"
_ONE = "/v1/images/{name:path}"

IMAGE_ROUTES = (
    Route(
        method="GET",
        path="/v1/images",
        handler=images.list_,
        group=_GROUP,
        summary="List images",
        description=(
            "What jobs may name as `image` without a pull. An image that a registry showed to a tenant's own credentials is there "
            "for that tenant alone, and for keys with the scope admin."
        ),
        scope=JOBS_READ,
        replies=(Reply(status=HTTPStatus.OK, description="All images.", body=ImageList),),
    ),
    Route(
        method="POST",
        path="/v1/images/pull",
        handler=images.pull,
        group=_GROUP,
        summary="Fetch an image from its registry",
        description=(
            "One JSON object per line, or server-sent events, by `Accept`: how far each layer is, as often as it changes, and last the "
            "image, or the problem if the pull failed after the answer had begun. With `Accept: application/json` the image when "
            "it is there. Pulls of one image at once are one pull, which ends when nobody waits for it any more. A job pulls its "
            "image itself: see its `pull`."
        ),
        scope=JOBS_WRITE,
        request=PullRequest,
        replies=(
            Reply(
                status=HTTPStatus.OK,
                description="The progress; lines are PullLines, and events are called by, and have, what is in one.",
                body=ImageView,
                media_types=images.OFFERED,
            ),
        ),
    ),
    Route(
        method="POST",
        path="/v1/images/prune",
        handler=images.prune,
        group=_GROUP,
        summary="Remove images that are not needed",
        description=(
            "What was cut short when it was made or removed, and files that no image needs any more; and images that nobody uses, "
            "if the request says which."
        ),
        scope=ADMIN,
        request=PruneRequest,
        request_optional=True,
        replies=(Reply(status=HTTPStatus.OK, description="Done.", body=PrunedView),),
    ),
    Route(
        method="GET",
        path=_ONE,
        handler=images.show,
        group=_GROUP,
        summary="Show an image",
        description=(
            "`name` as the list has it, or any other form of the same reference; its slashes may be escaped (`%2F`), or not."
        ),
        scope=JOBS_READ,
        replies=(Reply(status=HTTPStatus.OK, description="The image.", body=ImageDetailView),),
    ),
    Route(
        method="DELETE",
        path=_ONE,
        handler=images.remove,
        group=_GROUP,
        summary="Remove an image",
        description="409 while it is in use. A job that names it afterwards pulls it again, if its policy says so.",
        scope=ADMIN,
        replies=(Reply(status=HTTPStatus.NO_CONTENT, description="It is gone."),),
    ),
)
