"""Pictures in odd but valid files are read as a viewer shows them, and only under their own names."""

import unicodedata

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bitllm.data.io.pictures import PictureFolder, decode_picture, names_of, picture_reader
from bitllm.errors import DataError

RED = (200, 10, 30)


@pytest.fixture
def write(tmp_path):
    """Write a small picture, plain red unless another is given, under a name."""

    def make(name, picture=None, **options):
        path = tmp_path / name
        (picture or Image.new("RGB", (4, 3), RED)).save(path, **options)
        return path

    return make


def decoded(path):
    return decode_picture(path, path)


def test_sixteen_bit_gray_is_scaled(write):
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5957
    found = decoded(write("gray.png", Image.fromarray(values)))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.repeat((values / 257).round().astype(int)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("largest", [1, 255, 65535])
def test_gray_of_32_bits_is_scaled_by_its_range(write, largest):
    values = (np.linspace(0, 1, 12).reshape(3, 4) * largest).astype(np.float32)
    found = decoded(write("gray.tif", Image.fromarray(values)))
    np.testing.assert_array_equal(found[:, :, 0], np.round(values / largest * 255).astype(int))
    with pytest.raises(DataError, match=r"odd\.tif"):
        decoded(write("odd.tif", Image.fromarray(values - 5)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composited_on_white(write, mode):
    half = Image.new("RGBA", (4, 3), (0, 0, 0, 0))
    half.paste((0, 0, 0, 255), (0, 0, 2, 3))
    found = decoded(write("half.png", half.convert(mode)))
    assert (found[:, :2] == 0).all() and (found[:, 2:] == 255).all()


def test_orientation_is_applied(write):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: columns of the file are rows of the view
    stored = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    found = decoded(write("turned.png", Image.fromarray(stored), exif=exif))
    np.testing.assert_array_equal(found, np.rot90(stored, -1))


@pytest.mark.parametrize(
    ("mode", "name"), [("1", "a.png"), ("L", "a.png"), ("P", "a.gif"), ("CMYK", "a.tif")]
)
def test_other_modes_become_rgb(write, mode, name):
    found = decoded(write(name, Image.new("RGB", (4, 3), "white").convert(mode)))
    assert found.shape == (3, 4, 3) and (found == 255).all()


def test_of_an_animation_the_first_frame_is_taken(write):
    frames = [Image.new("RGB", (4, 3), color) for color in (RED, "white")]
    found = decoded(write("moving.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True))
    assert (found == RED).all()


@pytest.mark.parametrize(
    "name", ["a.PNG", "a.JPG", "a.Jpeg", "a.tif", "a.TIFF", "a.webp", "a.bmp", "a.gif", "a.ppm"]
)
def test_endings_count_in_any_case_and_format(write, tmp_path, name):
    write(name)
    assert PictureFolder(tmp_path).find(["a"]).name == name


def test_a_name_is_never_replaced_by_a_number(write, tmp_path):
    write("5.png")
    with pytest.raises(DataError, match="`pic05`"):
        PictureFolder(tmp_path).find(names_of("pic05"))
    with pytest.raises(DataError, match="`0005`"):
        PictureFolder(tmp_path).find(names_of("0005"))
    assert PictureFolder(tmp_path).find(names_of("5")).name == "5.png"


def test_cocos_padded_name_is_found_by_the_number(write, tmp_path):
    write("000000000005.jpg")
    folder = PictureFolder(tmp_path)
    assert folder.find(names_of("5")).name == folder.find(names_of("apple", 5)).name == "000000000005.jpg"


def test_names_with_dots_accents_and_endings_are_found(write, tmp_path):
    write(unicodedata.normalize("NFD", "café") + ".png")
    write("1518879.010420.png")
    folder = PictureFolder(tmp_path)
    for name, file in (
        ("café", "café.png"),
        ("café.png", "café.png"),
        ("1518879.010420", "1518879.010420.png"),
    ):
        assert unicodedata.normalize("NFC", folder.find([name]).name) == file


def test_two_files_of_one_name_are_an_error_unless_the_ending_is_given(write, tmp_path):
    write("a.png")
    write("a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png"):
        PictureFolder(tmp_path).find(["a"])
    assert PictureFolder(tmp_path).find(["a.jpg"]).name == "a.jpg"


def test_hidden_files_are_ignored_and_links_are_followed(write, tmp_path):
    write("a.png")
    (tmp_path / "._a.png").write_bytes(b"a resource fork")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.png").symlink_to(tmp_path / "a.png")
    assert PictureFolder(tmp_path).find(["a"]).name == "a.png"
    assert (decoded(PictureFolder(tmp_path / "folder").find(["b"])) == RED).all()


@pytest.mark.parametrize("name", ["../a", "folder/../../a", "/etc/passwd"])
def test_a_name_never_leads_out_of_the_folder(write, tmp_path, name):
    write("a.png")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="expected a picture"):
        PictureFolder(tmp_path / "folder").find([name])


def test_a_picture_is_read_for_each_image_and_damage_is_found_before(write, tmp_path):
    write("x.png")
    write("y.png", Image.new("RGB", (4, 3), "white"))
    stimuli = pd.DataFrame({"nsd_id": [0, 1], "stimulus_id": ["y", "x"], "coco_id": -1})
    read = picture_reader(tmp_path, stimuli)
    assert (read(0) == 255).all() and (read(1) == RED).all()
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"x\.png"):
        picture_reader(tmp_path, stimuli)
