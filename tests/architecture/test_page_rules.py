"""Habits of templates and style sheets that a reader relies on."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
BLOCKS = sorted((ROOT / "static/css/blocks").glob("*.css"))
SHEETS = [ROOT / "static/css/base.css", *BLOCKS]
SCRIPTS = sorted((ROOT / "static/js").glob("*.js"))


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", TEMPLATES, ids=name)
def test_a_template_holds_no_script_style_or_handler(path):
    """The content security policy would refuse them."""
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|hx-on", path.read_text())


@pytest.mark.parametrize("path", TEMPLATES, ids=name)
def test_a_template_compares_no_level_or_type(path):
    """A new format must need no edit here."""
    assert not re.search(r"""["'](?:I?Q\d|F16|F32|BF16|gguf|gptq|awq)""", path.read_text(), re.IGNORECASE)


@pytest.mark.parametrize("path", [p for p in TEMPLATES if p.name.startswith("_")], ids=name)
def test_a_part_is_small(path):
    assert len(path.read_text().splitlines()) <= 35


@pytest.mark.parametrize("path", SHEETS, ids=name)
def test_colours_are_variables(path):
    assert not re.search(r"#[0-9a-f]{3,8}\b|\brgba?\(|\bhsla?\(", path.read_text(), re.IGNORECASE)


@pytest.mark.parametrize("path", SHEETS, ids=name)
def test_no_selector_is_an_id(path):
    code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)

    assert not re.search(r"#[\w-]+[^;{}]*\{", code)


@pytest.mark.parametrize("path", BLOCKS, ids=name)
def test_a_block_opens_with_the_markup_it_styles(path):
    assert re.match(r"/\* .*<\w+ class=\"", path.read_text())


@pytest.mark.parametrize("path", [*SHEETS, ROOT / "static/css/variables.css", *SCRIPTS, *TEMPLATES], ids=name)
def test_nothing_is_fetched_from_elsewhere(path):
    found = re.findall(r"""(?:src|href|url|fetch|import)\W{0,3}(?:https?:)?//""", path.read_text())

    assert not found
