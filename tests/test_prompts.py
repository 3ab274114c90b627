"""A prompt's notation: what A1111 reads, what an identifier is, and how strongly it shows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamtune.errors import Usage
from dreamtune.formats.prompts import parse, strengths, variants

V01 = ["[V01]"]

# Left: a prompt; right: what A1111's parse_prompt_attention says of it, sections split at BREAK.
A1111 = {
    "normal text": [[("normal text", 1.0)]],
    "an (important) word": [[("an ", 1.0), ("important", 1.1), (" word", 1.0)]],
    "(unbalanced": [[("unbalanced", 1.1)]],
    "un)balanced]": [[("un)balanced]", 1.0)]],
    r"\(literal\]": [[("(literal]", 1.0)]],
    r"back\\slash \ alone": [[("back\\slash  alone", 1.0)]],
    "(unnecessary)(parens)": [[("unnecessaryparens", 1.1)]],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        [
            ("a ", 1.0),
            ("house", 1.573),
            (" ", 1.1),
            ("on", 1.0),
            (" a ", 1.1),
            ("hill", 0.55),
            (", sun, ", 1.1),
            ("sky", 1.4641),
            (".", 1.1),
        ]
    ],
    "(a: 1.5 ) time: 12:30": [[("a", 1.5), (" time: 12:30", 1.0)]],
    "[two words]": [[("two words", 1 / 1.1)]],
    "a BREAK b": [[("a", 1.0)], [("b", 1.0)]],
    "": [[("", 1.0)]],
}


@pytest.mark.parametrize("prompt", A1111)
def test_emphasis_is_a1111s(prompt: str) -> None:
    got = parse(prompt)
    assert [[text for text, _ in s] for s in got] == [[t for t, _ in s] for s in A1111[prompt]]
    weights = [weight for section in got for _, weight in section]
    assert weights == pytest.approx([w for section in A1111[prompt] for _, w in section])


def test_an_identifier_is_no_emphasis() -> None:
    assert parse("a [V01] dog", V01) == [[("a [V01] dog", 1.0)]]
    assert parse("[[V01]] ([V01]:1.5)", V01) == [[("[V01]", 1 / 1.1), (" ", 1.0), ("[V01]", 1.5)]]
    assert parse("a [V02] dog", V01) == [[("a ", 1.0), ("V02", 1 / 1.1), (" dog", 1.0)]]
    assert parse(r"\[V01]", V01) == [[("[V01]", 1.0)]]


@pytest.mark.parametrize("prompt", ["a [cat:dog:0.5]", "[dog:3]", "[cat|dog]", "((x [a|b] y))"])
def test_what_changes_on_the_way_is_refused(prompt: str) -> None:
    with pytest.raises(Usage, match="on the way"):
        parse(prompt)


def test_an_adapter_named_as_in_a1111_is_refused_with_ours() -> None:
    with pytest.raises(Usage, match=r"--with rex@0\.8"):
        parse("a dog <lora:rex:0.8>")


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab ()[]\\:.15V", max_size=40))
def test_every_prompt_is_words_with_weights_or_refused(prompt: str) -> None:
    try:
        sections = parse(prompt, V01)
    except Usage:
        return
    assert all(section and all(isinstance(w, float) for _, w in section) for section in sections)


def test_strengths() -> None:
    prompt = "a [V01]:0.6 dog, [V02]:.5. ([V01]:0.6) [V03]: 3"
    assert strengths(prompt, ["[V01]", "[V02]", "[V03]"]) == (
        "a [V01] dog, [V02]. ([V01]:0.6) [V03]: 3",
        {"[V01]": 0.6, "[V02]": 0.5},
    )
    assert strengths("[V01]:0.5", []) == ("[V01]:0.5", {})
    with pytest.raises(Usage, match="at most 2"):
        strengths("[V01]:3", V01)
    with pytest.raises(Usage, match=r"it has 0\.6 too"):
        strengths("[V01]:0.6 and [V01]:0.7", V01)


def test_variants_are_with_and_without_each_concept() -> None:
    plain = {"[V01]": "dog", "[V02]": "mug"}
    one = dict(variants("a [V01] dog, [V01]", {"[V01]": 0.75}, plain))
    assert one == {"a [V01] dog, [V01]": 0.75, "a dog, dog": 0.25}
    assert variants("[V01] dog", {"[V01]": 0.0}, plain) == [("dog", 1.0)]
    assert variants("[V01] dog", {"[V01]": 1.0}, plain) == [("[V01] dog", 1.0)]
    assert variants("[V01] dogs", {"[V01]": 0.0, "[V02]": 0.5}, plain) == [("dogs", 1.0)]
    two = dict(variants("[V01] dog, [V02]", {"[V01]": 0.75, "[V02]": 0.5}, plain))
    assert two == {
        "[V01] dog, [V02]": 0.375,
        "[V01] dog, mug": 0.375,
        "dog, [V02]": 0.125,
        "dog, mug": 0.125,
    }
