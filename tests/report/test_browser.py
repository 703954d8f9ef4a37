"""The report of the demo in a real browser: no network, no complaint, nothing too wide, readable for everyone."""

import pytest

from bitllm.report import read_run, write_comparison


@pytest.fixture(scope="module")
def pages(demo_folder, tmp_path_factory):
    """Addresses of the page about one run and of that about two."""
    out = tmp_path_factory.mktemp("pages") / "compare.html"
    run = read_run(demo_folder)
    write_comparison([run, run], out)
    return {"one": (demo_folder / "report.html").as_uri(), "two": out.as_uri()}


@pytest.mark.parametrize("page", ["one", "two"])
def test_it_opens_without_a_network_fits_a_phone_and_is_accessible(visit, pages, page):
    seen = visit(pages[page], offline=True)
    assert seen.complaints == []
    assert [url for url in seen.requested if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in seen.requested if url.startswith("file:")]) == 1
    assert "depend on the brain data" in seen.page.inner_text("h1")
    broken = "[...document.images].filter((one) => !one.complete || one.naturalWidth === 0).length"
    assert seen.page.evaluate(broken) == 0
    for width in (1200, 360):
        seen.page.set_viewport_size({"width": width, "height": 900})
        for colors in ("light", "dark"):
            seen.page.emulate_media(color_scheme=colors)
            assert seen.overflow_px() == 0, (width, colors)
            assert width == 360 or seen.violations() == [], colors


def test_words_are_colored_by_their_bits(visit, pages):
    page = visit(pages["one"]).page
    words = page.locator(".card .w")
    assert words.count() > 20
    assert all("bits" in words.nth(number).get_attribute("title") for number in range(5))
