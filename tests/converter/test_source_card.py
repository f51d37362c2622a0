"""What our card takes over from the source's: every word as it was meant, and no right lost without a note."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from converter.card.card import render_card
from converter.card.source_card import (
    SourceCard,
    is_language,
    is_license_link,
    parse_source_card,
    read_source_card,
)
from converter.convert import convert
from converter.publish.leaks import lint_card
from mlxbert.checkpoint import is_license_file
from mlxbert.hub import is_valid_repo_id
from tests.support.card_samples import MINILM
from tests.support.hub.yaml_rules import check_yaml
from tests.support.tiny import save_tiny


def read(
    front_matter: str | bytes, folder: Path, body: str = "# A model\n", **options: str
) -> tuple[SourceCard, list[str]]:
    data = front_matter if isinstance(front_matter, bytes) else f"---\n{front_matter}\n---\n{body}".encode()
    (folder / "README.md").write_bytes(data)
    card, notes = read_source_card(folder, **options)
    rendered = render_card(replace(MINILM, source_card=card))
    assert check_yaml(rendered)[0] == []
    assert lint_card(rendered) == []
    # YAML 1.1 and our own words read the same back: what was taken over is what was meant.
    block = yaml.safe_load(rendered.split("---\n")[1])
    assert tuple(block.get("language", ())) == card.language
    assert SourceCard.from_block(json.loads(json.dumps({"source_card": card.as_block()}))) == card
    return card, notes


def quoted(note: str) -> str:
    """The value that a note is about."""
    return note.rpartition(", which the Hub refuses")[0].rpartition(" ")[2].strip("'")


class TestWordsOfYaml:
    @pytest.mark.parametrize("word", ["no", "NO", "No", "'no'", '"no"', "[no]", "\n- no", "\n  - NO"])
    def test_norwegian_is_a_language(self, word: str, tmp_path: Path) -> None:
        assert read(f"language: {word}", tmp_path) == (SourceCard(language=("no",)), [])

    def test_every_word_that_yaml_1_1_takes_for_something_else(self, tmp_path: Path) -> None:
        card, notes = read("language: [no, on, y, n, yes, off, en]\ntags: [no, on]", tmp_path)
        assert card.language == ("no", "yes", "off", "en")  # `yes` and `off` are codes of ISO 639-3
        assert [quoted(note) for note in notes] == ["on", "y", "n"]

    def test_numbers_dates_and_sexagesimals_stay_text(self, tmp_path: Path) -> None:
        fields = (
            "datasets: [2024-01-01, 1:30, 007, 1_000, 0x1F, 1e3, .5, null, ~, '']\nlicense_name: 1.10\nlicense: other"
        )
        card, notes = read(fields, tmp_path)
        assert card.datasets == ("2024-01-01", "007", "1_000", "0x1F", "1e3")
        assert card.license_name == "1.10"
        assert [quoted(note) for note in notes] == ["1:30", ".5"]

    def test_nothing_at_all_is_no_value(self, tmp_path: Path) -> None:
        assert read("language:\nlicense: null\ndatasets: [null]", tmp_path) == (SourceCard(), [])


class TestRights:
    def test_another_license_keeps_name_and_link(self, tmp_path: Path) -> None:
        card, notes = read(
            "license: other\nlicense_name: coqui-public-model-license\nlicense_link: https://coqui.ai/cpml", tmp_path
        )
        assert card == SourceCard(
            ("other",), license_name="coqui-public-model-license", license_link="https://coqui.ai/cpml"
        )
        assert notes == []

    @pytest.mark.parametrize(
        ("written", "licenses"),
        [
            ("Apache-2.0", ("apache-2.0",)),
            ("Apache 2.0", ("apache-2.0",)),
            ("MIT", ("mit",)),
            ("CC-BY-NC-4.0", ("cc-by-nc-4.0",)),
            ("[MIT, Apache-2.0, mit]", ("mit", "apache-2.0")),
            ("\n- cc-by-4.0\n- other", ("cc-by-4.0", "other")),
        ],
    )
    def test_capitals_and_several(self, written: str, licenses: tuple[str, ...], tmp_path: Path) -> None:
        assert read(f"license: {written}\nlicense_name: x", tmp_path)[0].license == licenses

    def test_a_field_in_capitals_and_one_that_stands_twice(self, tmp_path: Path) -> None:
        assert read("License: MIT\nLanguage: no", tmp_path) == (SourceCard(("mit",), ("no",)), [])
        card, notes = read("license: cc-by-nc-4.0\nlanguage: en\nlicense: mit", tmp_path)
        assert card == SourceCard(("mit",), ("en",))
        assert notes == ["the source's card has license twice: the last one is used; check it there"]

    def test_a_license_that_the_hub_does_not_know_is_named(self, tmp_path: Path) -> None:
        card, notes = read("license: My Own 1.0", tmp_path)
        assert (card.license, card.license_name) == (("other",), "my-own-1.0")
        assert notes == [
            "the Hub does not know the source's license 'my-own-1.0': our card has license_name my-own-1.0"
        ]
        card, notes = read("license: [first-own, second-own]", tmp_path)
        assert (card.license, card.license_name) == (("other",), "first-own")
        assert "license 'second-own', which the Hub refuses: left out" in notes[1]

    @pytest.mark.parametrize(
        ("fields", "note"),
        [
            ("license: other", "the source's license is 'other', and its card has no license_name"),
            ("license: {a: b}", "license 'dict', which the Hub refuses"),
            ("license: '???'", "license '???', which the Hub refuses"),
            ("license: other\nlicense_name: '???'\nlicense_link: https://x.org/l", "license_name '???'"),
            ("license: mit\nlicense_link: 'javascript:alert(1)'", "license_link 'javascript:alert(1)'"),
            ("license: mit\nlicense_link: '../../secret'", "license_link '../../secret'"),
            ("license: mit\nextra_gated_prompt: |\n  You agree to [[[", "the source asks its users to agree to terms"),
            ("license: mit\nlicense_details: No Tuesdays.", "license_details, which the Hub shows no more"),
            ("license: mit\ndatasets: [\n", "a datasets that cannot be read (ParserError)"),
        ],
    )
    def test_no_right_is_lost_without_a_note(self, fields: str, note: str, tmp_path: Path) -> None:
        card, notes = read(fields, tmp_path)
        assert len([line for line in notes if note in line]) == 1, notes
        assert card.license in (("other",), ("mit",), ())

    def test_a_link_to_a_file_is_kept_where_the_file_is_copied(self, tmp_path: Path) -> None:
        fields = "license: other\nlicense_name: x\nlicense_link: LICENSE"
        card, notes = read(fields, tmp_path)
        assert card.license_link is None
        assert notes == [
            "the source's license_link 'LICENSE' is not a license file beside its weights: left out of our card"
        ]
        (tmp_path / "TERMS.md").write_text(
            "Do as you like.\n"
        )  # a name that nobody takes for a license, so not copied
        assert read(fields.replace("LICENSE", "TERMS.md"), tmp_path)[0].license_link is None
        (tmp_path / "LICENSE").write_text("Do as you like.\n")
        assert read(fields, tmp_path)[0].license_link == "LICENSE"

    def test_a_link_to_a_file_on_the_hub_becomes_its_address(self, tmp_path: Path) -> None:
        url = f"https://huggingface.co/team/bert/blob/{'a' * 40}"
        card, notes = read("license: other\nlicense_name: x\nlicense_link: legal/TERMS.md", tmp_path, url=url)
        assert (card.license_link, notes) == (f"{url}/legal/TERMS.md", [])

    def test_license_files_go_with_the_weights(self, tmp_path: Path) -> None:
        save_tiny(tmp_path / "source", "BertForSequenceClassification")
        (tmp_path / "source/LICENSE").write_text("Do as you like.\n")
        (tmp_path / "source/NOTICE.txt").write_text("Made by us.\n")
        fields = "license: other\nlicense_name: as-you-like\nlicense_link: LICENSE"
        (tmp_path / "source/README.md").write_text(f"---\n{fields}\n---\n")
        convert(tmp_path / "source", tmp_path / "once", verify=False)
        convert(tmp_path / "once", tmp_path / "twice", dtype="float16", verify=False)
        for out in (tmp_path / "once", tmp_path / "twice"):
            assert (out / "LICENSE").read_text() == "Do as you like.\n"
            assert (out / "NOTICE.txt").read_text() == "Made by us.\n"
            assert "LICENSE" in json.loads((out / "manifest.json").read_text())["files"]
            assert yaml.safe_load((out / "README.md").read_text().split("---\n")[1])["license_link"] == "LICENSE"

    def test_which_files_hold_rights(self) -> None:
        yes = ["LICENSE", "license.md", "LICENCE.txt", "LICENSE-APACHE-2.0", "NOTICE", "COPYING", "LICENSES.txt"]
        no = [
            "licensed_model.safetensors",
            "LICENSE.bin",
            "notice.py",
            "README.md",
            "config.json",
            "LICENSE.safetensors",
        ]
        assert [is_license_file(name) for name in yes] == [True] * len(yes)
        assert [is_license_file(name) for name in no] == [False] * len(no)


class TestHostileFiles:
    @pytest.mark.parametrize(
        "data",
        [
            b"\xef\xbb\xbf---\nlicense: mit\n---\n",
            b"---\r\nlicense: mit\r\n---\r\n# x\r\n",
            b"---\rlicense: mit\r---\r",
            b"\n  ---\nlicense: mit\n---",
            b"---  \nlicense: mit\n---  \n\xff\xfe no UTF-8 below",
            b"---\n{license: mit}\n---\n",
            b"---\n'license': MIT # yes\n...\n---\n",
            b"---\nlicense: mit\n---\n" + b"word " * 4_000_000,
            b"---\nmodel-index:\n" + b"- name: x\n" * 100_000 + b"license: mit\n---\n",
            b"---\nlicense: mit\nwidget: &a [*a, *a]\ntags: [\n---\n",
            b"---\nx: {a: 1\nlicense: mit\n---\n",
        ],
        ids=["BOM", "CRLF", "CR", "spaces", "body", "flow", "quoted", "20 MB", "1 MB of results", "aliases", "half"],
    )
    def test_the_license_is_found_all_the_same(self, data: bytes, tmp_path: Path) -> None:
        assert read(data, tmp_path)[0].license == ("mit",)

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"---\nlicense: mit\n", "its front matter has no end"),
            (b"---\nlicense: mit\n" + b"x: y\n" * 2_000_000, "its front matter has no end"),
            ("---\nlicense: mit\n---\n".encode("utf-16"), "it is not UTF-8"),
            (b"---\nlicense: \xff\n---\n", "its front matter is not UTF-8"),
            (b"---\nlicense: [\n---\n", "ParserError"),
            (b"---\nlanguage: " + b"[" * 50_000 + b"\n---\n", "RecursionError"),
            (b"---\nlanguage: [" + b"en, " * 50_000 + b"]\n---\n", "too long"),
            (b"---\nlanguage: !!python/object:os.system [x]\n---\n", "ConstructorError"),
            (b"---\nlanguage: &a [*a, *a]\n---\n", "language 'list'"),
            (b'---\nlanguage: {"a": &a [x, x], b: &b [*a, *a], !!merge <<: [{c: d}]}\n---\n', "ConstructorError"),
        ],
    )
    def test_what_cannot_be_read_is_one_note(self, data: bytes, reason: str, tmp_path: Path) -> None:
        card, notes = read(data, tmp_path)
        assert card == SourceCard()
        assert set(notes) == {note for note in notes if reason in note}
        assert len(notes) in (1, 2)

    def test_a_card_that_is_no_file_is_a_note(self, tmp_path: Path) -> None:
        (tmp_path / "README.md").mkdir()
        card, notes = read_source_card(tmp_path)
        assert card == SourceCard()
        assert len(notes) == 1

    def test_none_at_all(self, tmp_path: Path) -> None:
        assert read_source_card(tmp_path) == (SourceCard(), [])
        assert read(b"# no front matter\n", tmp_path) == (SourceCard(), [])

    def test_a_name_with_control_characters_is_escaped(self, tmp_path: Path) -> None:
        _, notes = read('license: "\\e]0;x\\a"', tmp_path)
        assert len(notes) == 1
        assert notes[0].isprintable()


class TestLanguages:
    def test_codes_in_capitals_and_with_a_region(self, tmp_path: Path) -> None:
        card, notes = read("language: [EN, pt-BR, zh_Hans, multilingual, yue, English]", tmp_path)
        assert card.language == ("en", "pt", "zh", "multilingual", "yue")
        assert notes[0] == "the source's card has language 'pt-BR': our card has pt, as the Hub wants"
        assert "language 'English', which the Hub refuses" in notes[-1]

    def test_many_bad_values_are_three_notes(self) -> None:
        assert len(parse_source_card({"datasets": ["a b"] * 1000})[1]) == 3

    def test_the_rules(self) -> None:
        assert [is_language(x) for x in ("en", "yue", "multilingual", "xx", "EN", "english")] == [True] * 3 + [
            False
        ] * 3
        assert [is_valid_repo_id(x) for x in ("squad", "a/b", "a/b/c", "a b", "a--b")] == [True] * 2 + [False] * 3
        links = (
            "LICENSE",
            "https://x.org/a?b=c#d",
            "http://u:p@x.org/",
            "../LICENSE",
            "/etc/passwd",
            "a b",
            "ftp://x.org",
        )
        assert [is_license_link(x) for x in links] == [True] * 2 + [False] * 5

    def test_a_block_that_is_nonsense(self) -> None:
        assert SourceCard.from_block({}) == SourceCard()
        assert SourceCard.from_block({"source_card": "nonsense"}) == SourceCard()
        assert SourceCard.from_block({"source_card": {"license": "mit"}}) == SourceCard(
            ("mit",)
        )  # as it was written once
