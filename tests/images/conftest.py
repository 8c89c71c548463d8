"""Images of a test's own, unpacked by a real sandbox."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from benches import bench, either
from image_bench import ImageBench, an_image_bench
from registries import registry, stub
from sandbox_bench import Bench

__all__ = ["bench", "either", "registry", "stub"]


@pytest.fixture
def images(bench: Bench, tmp_path: Path) -> Iterator[ImageBench]:
    with an_image_bench(bench, tmp_path) as made:
        yield made


@pytest.fixture
def images_of_either(either: Bench, tmp_path: Path) -> Iterator[ImageBench]:
    with an_image_bench(either, tmp_path) as made:
        yield made
