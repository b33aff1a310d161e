"""Fixtures of the image tests: a road-like picture, and warnings that every test sees anew."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from raggedbev.mm.images import files


@pytest.fixture(autouse=True)
def fresh_warnings() -> Iterator[None]:
    """Forget which warnings were given."""
    files._said.clear()
    yield
    files._said.clear()


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """BGR [90, 160, 3]: smooth areas, edges and some grain."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(30, 220, (6, 10, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (160, 90), interpolation=cv2.INTER_CUBIC)
    cv2.rectangle(picture, (40, 20), (90, 70), (20, 40, 200), -1)
    return np.clip(picture + rng.normal(0, 3, (90, 160, 1)), 0, 255).astype(np.uint8)
