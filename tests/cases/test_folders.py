"""Thirty random folders. `python tests/cases/folders.py` reads 300, or more with other seeds."""

from pathlib import Path

import pytest

from cases import folders


@pytest.mark.parametrize("seed", range(30))
def test_random_folder_is_read_as_it_is(seed: int, tmp_path: Path) -> None:
    assert folders.differences(folders.make(tmp_path, seed)) == []
