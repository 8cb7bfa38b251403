"""What a caption is made of, and words by their letters."""

from __future__ import annotations

import torch

from avcl.encoders.phrases import Spelling, phrases_of


def test_things_what_they_are_like_and_what_is_between_them() -> None:
    found = phrases_of("A small metal ring bounces silently on the left while a glass bar sounds off screen.")
    assert found.words[:4] == ("a", "small", "metal", "ring")
    assert found.things == ("ring", "left", "bar", "screen")
    assert found.attributes == (("small", "ring"), ("metal", "ring"), ("glass", "bar"))
    assert found.relations == (("ring", ("bounces", "on"), "left"), ("bar", ("sounds", "off"), "screen"))


def test_a_joint_relates_nothing_and_a_thing_may_look_like_a_verb() -> None:
    assert phrases_of("two dogs and a cat").relations == ()
    assert phrases_of("a swing").things == ("swing",)
    assert phrases_of("a man on a swing").relations == (("man", ("on",), "swing"),)
    assert phrases_of("An albino peahen (a female peafowl, or peacock).").attributes == (
        ("albino", "peahen"),
        ("female", "peafowl"),
    )
    for empty in ("", "...", "the"):
        assert phrases_of(empty).things == ()
        assert phrases_of(empty).relations == ()


def test_a_word_is_read_by_its_letters_alone() -> None:
    spelling = Spelling(6, letters=8).eval()
    with torch.no_grad():
        few = spelling(["ring", "bar"])
        many = spelling(["bar", "a-much-longer-word", "ring", "peón"])
    assert few.shape == (2, 6)
    torch.testing.assert_close(few, many[[2, 0]], atol=1e-6, rtol=1e-5)
    assert float((many[0] - many[2]).abs().max()) > 1e-3
