"""A build is known by its source."""

from __future__ import annotations

import shutil

import quantcore
from quantcore import identity


def test_a_build_is_the_same_wherever_it_lies_and_another_after_any_change(tmp_path, monkeypatch):
    own = quantcore.build()
    copy = tmp_path / "elsewhere"
    shutil.copytree(identity.FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(identity, "FOLDER", copy)
    again = identity.build.__wrapped__()
    (copy / "errors.py").write_bytes((copy / "errors.py").read_bytes() + b"\n")

    assert again == own
    assert len(again) == 12
    assert identity.build.__wrapped__() != again


def test_what_is_no_source_does_not_count(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("x = 1")
    monkeypatch.setattr(identity, "FOLDER", tmp_path)
    before = identity.build.__wrapped__()
    (tmp_path / "a.pyc").write_text("x = 2")

    assert identity.build.__wrapped__() == before
