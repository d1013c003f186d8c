from __future__ import annotations

import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from emulator.compare.comparison import Comparison
from emulator.report.html import render, write

Compared = Callable[[str], Comparison]
NAMES = ["two_styles", "four_styles", "ipv6", "racks", "hostile"]


class Page(HTMLParser):
    """What a browser would make of the page, as far as these tests ask."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.mark.parametrize("name", NAMES)
def test_the_page_needs_no_network(compared: Compared, name: str) -> None:
    text = render(compared(name))
    page = Page(text)
    assert not page.all("link")
    assert not page.all("img")
    assert all(not attrs for attrs in page.all("script"))
    assert not re.search(r"https?:|@import|url\(", text)
    assert all((attrs.get("href") or "#").startswith("#") for _, attrs in page.tags)


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_inside_the_page_leads_somewhere(compared: Compared, name: str) -> None:
    page = Page(render(compared(name)))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    used = {(attrs.get("href") or "")[1:] for _, attrs in page.tags if "href" in attrs}
    used |= {attrs["aria-labelledby"] or "" for _, attrs in page.tags if "aria-labelledby" in attrs}
    assert len(ids) == len(set(ids))
    assert used <= set(ids)


def test_hostile_names_stay_text(compared: Compared) -> None:
    text = render(compared("hostile"))
    page = Page(text)
    assert len(page.all("script")) == 1
    assert len(page.all("title")) == 1
    assert "alert(1)" in page.text
    assert "\x1b" not in text
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_all_that_matters_is_text_without_scripts(compared: Compared) -> None:
    page = Page(re.sub(r"<script>.*?</script>", "", render(compared("two_styles")), flags=re.DOTALL))
    for words in ("flannel.1", "VXLAN vni 1", "learned by BGP from n2", "11 of 12 expectations met", "last seen here"):
        assert words in page.text


def test_a_style_that_failed_is_said_loudly_and_leaves_the_others(compared: Compared) -> None:
    page = Page(render(compared("ipv6")))
    assert "✗ Failed · Calico · VXLAN: did not run: the kernel refused vxlan-v6.calico" in page.text
    assert "✗ did not run" in page.text
    assert "fd00:10:244:2:ffff:eeee:dddd:2002" in page.text


def test_lost_packets_and_labels_are_banners(compared: Compared) -> None:
    page = Page(render(compared("racks")))
    banners = [attrs["class"] for attrs in page.all("p") if "banner" in (attrs.get("class") or "")]
    assert banners == ["banner lost", "banner label"]
    assert "capture lost 12 packets" in page.text


def test_the_overview_has_a_cell_per_flow_and_style_with_a_word_in_it(compared: Compared) -> None:
    text = render(compared("four_styles"))
    overview = re.search(r'<table class="overview.*?</table>', text, flags=re.DOTALL)
    assert overview
    assert len(re.findall(r"[✓✗] (delivered|unreachable|dropped)", overview.group())) == 16


def test_tables_name_their_headers(compared: Compared) -> None:
    page = Page(render(compared("two_styles")))
    assert all(attrs.get("scope") in ("col", "row", "rowgroup") for attrs in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_changes_carry_a_sign_besides_their_colour(compared: Compared) -> None:
    text = render(compared("two_styles"))
    assert '.changed::before { content: "Δ "' in text
    assert '.added::before { content: "+ "' in text
    assert '.diff th::before { content: "≠"' in text


def test_what_came_back_is_open_and_the_reply_is_folded(compared: Compared) -> None:
    text = render(compared("two_styles"))
    assert "<details open><summary><b>What came back</b>: fragmentation needed, mtu 1450" in text
    assert "<details><summary><b>Reply</b>: 12 device traversals" in text


def test_a_hundred_flows_under_four_styles_are_written_fast_and_small(compared: Compared, tmp_path: Path) -> None:
    comparison = compared("many")
    began = time.process_time()
    path = write(comparison, tmp_path / "report.html")
    assert time.process_time() - began < 5
    assert path.stat().st_size < 2 * 1024 * 1024
