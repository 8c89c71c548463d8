"""Jobs of the real service: each test leaves nothing behind, and beside some a neighbour works."""

from neighbour import neighbour, nothing_is_left

__all__ = ["neighbour", "nothing_is_left"]
