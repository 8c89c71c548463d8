"""An image with what it is made of, and what was removed, as the API shows it."""

from msgspec import UNSET, structs

from sandboxd.api.image_schemas import ImageConfigView, ImageDetailView, LayerView, PrunedView
from sandboxd.api.query import rfc3339
from sandboxd.api.views import image_view
from sandboxd.images.details import Details
from sandboxd.images.store.pruning import Pruned
from sandboxd.signal_names import signal_name


def image_detail_view(details: Details, *, for_operator: bool) -> ImageDetailView:
    """Whose it is, is told to the operator only."""
    config, run_as = None, details.run_as
    if run_as is not None:
        config = ImageConfigView(
            entrypoint=run_as.entrypoint,
            cmd=run_as.cmd,
            env=run_as.env,
            user=f"{run_as.user[0]}:{run_as.user[1]}",
            workdir=run_as.workdir,
            stop_signal=signal_name(run_as.stop_signal),
            labels=dict(details.labels),
        )
    return ImageDetailView(
        **structs.asdict(image_view(details.image)),
        last_used_at=None if details.last_used_at is None else rfc3339(details.last_used_at),
        config_digest=details.config_digest,
        config=config,
        layers=[
            LayerView(digest=each.digest, size_bytes=each.size, media_type=each.media_type)
            for each in details.layers
        ],
        tenants=details.tenants if for_operator else UNSET,
    )


def pruned_view(pruned: Pruned) -> PrunedView:
    return PrunedView(
        images=tuple(pruned.names),
        trees=pruned.trees,
        blobs=pruned.blobs,
        freed_bytes=pruned.freed_bytes,
        not_removed=len(pruned.remaining),
    )
