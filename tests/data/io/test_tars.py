import io
import tarfile

import pytest

from bitllm.data.io.tars import read_samples
from bitllm.errors import DataError


@pytest.fixture
def write(tmp_path):
    """Write a tar whose members hold their own names."""

    def make(*names):
        path = tmp_path / "some.tar"
        with tarfile.open(path, "w") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(name)
                archive.addfile(member, io.BytesIO(name.encode()))
        return path

    return make


def test_resource_forks_of_macos_are_ignored(write):
    path = write("._a.x", "a.x", "._a.y", "a.y", "deep/._b.x", "deep/b.x")
    assert list(read_samples(path, ("x", "y"))) == [{"x": b"a.x", "y": b"a.y"}, {"x": b"deep/b.x"}]


def test_members_of_a_sample_that_are_apart_are_named_with_the_remedy(write):
    with pytest.raises(DataError, match=r"some\.tar: .*`a`.*sort"):
        list(read_samples(write("a.x", "b.x", "a.y"), ("x", "y")))


def test_samples_of_two_folders_may_have_one_name(write):
    assert len(list(read_samples(write("one/a.x", "two/a.x"), ("x",)))) == 2
