"""Every encoding and separator is read or refused, and no row is lost or shifted."""

import re

import pytest

from lowrank_study.data.text_files import Grid, decoded, grid, orange_grid
from lowrank_study.errors import InputError

GERMAN = 'text,label\n"Müller, schön",up\nStraße größer,down\n'


def read(
    text: str, *, separator: str | None = None, usual: str = ",", label: str = "label"
) -> Grid:
    return grid(
        text, "a.csv", separator=separator, usual=usual, columns=["text", label], label=label
    )


@pytest.mark.parametrize(
    ("encoding", "summary"),
    [
        ("utf-8", "UTF-8"),
        ("utf-8-sig", "UTF-8"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("latin-1", "not UTF-8, assumed to be Windows-1252 (as in 'Müller')"),
        ("cp1252", "not UTF-8, assumed to be Windows-1252 (as in 'Müller')"),
    ],
)
def test_an_encoding_is_detected_and_reported(encoding: str, summary: str) -> None:
    assert decoded(GERMAN.encode(encoding), "a.csv", None) == (GERMAN, summary)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Добрый день, мир", "cp1251"),
        ("день", "koi8-r"),
        ("一个很好的电影", "gb18030"),
        ("とても良い映画", "shift_jis"),
        ("José está aquí", "mac_roman"),
        ("Müller über", "cp850"),
        ("źdźbło złości", "cp1250"),
    ],
)
def test_an_undetectable_encoding_is_refused(text: str, encoding: str) -> None:
    content = f"text,label\ngood,up\n{text},up\n".encode(encoding)
    refusal = r"a\.csv is not UTF-8 \(byte 0x.. in line 3\).* task\.encoding=ENCODING"
    with pytest.raises(InputError, match=refusal):
        decoded(content, "a.csv", None)
    assert decoded(content, "a.csv", encoding)[0].splitlines()[2] == f"{text},up"


def test_a_named_encoding_that_does_not_fit_is_refused_with_the_line() -> None:
    with pytest.raises(InputError, match=r"a\.csv is not utf-8: byte 0xfc in line 2"):
        decoded(GERMAN.encode("latin-1"), "a.csv", "utf-8")
    with pytest.raises(InputError, match="zero bytes"):
        decoded(b"a,b\n\0\0\x01,\0\n", "a.csv", None)


@pytest.mark.parametrize(
    ("mark", "summary"), [(",", "commas"), (";", "semicolons"), ("\t", "tabs"), ("|", "pipes")]
)
@pytest.mark.parametrize("usual", [",", "\t"])
def test_a_separator_is_detected_and_reported(mark: str, summary: str, usual: str) -> None:
    found = read(
        f"id{mark}text{mark}label\n1{mark}so, so; it is{mark}up\n".replace(
            "so, so; it is", '"so, so; it is"'
        ),
        usual=usual,
    )
    assert found.header == ["id", "text", "label"]
    assert found.rows == [["1", "so, so; it is", "up"]]
    assert found.summary == f"separated by {summary}"


def test_a_named_separator_is_used() -> None:
    assert read("text^label\na, b^up\n", separator="^").rows == [["a, b", "up"]]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_line_ends_and_blank_lines(ending: str) -> None:
    text = ending.join(["text,label", "", '"two', 'lines",up', ",", "b,down", ""])
    found = read(text)
    assert found.rows == [[f"two{ending}lines", "up"], ["b", "down"]]
    assert "1 line breaks inside cells" in found.summary


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("text,label\ngood,up\nWell, I liked it,up\n", 3),  # an unquoted comma
        ("text,label\ngood,up,\nbad,down,\n", 2),  # a separator at each line's end
        ("text,label\n1,good,up\n2,bad,down\n", 2),  # row names without a header
        ("text,label\ngood,up\n\nbad\n", 4),  # a field is missing
    ],
)
def test_a_row_of_another_length_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(InputError, match=rf"a\.csv line {line} has . fields, the header has 2"):
        read(text)


def test_an_open_quotation_mark_is_refused_with_its_line() -> None:
    with pytest.raises(InputError, match=r"a\.csv line 2: .*quotation mark"):
        read('text,label\n"good" film, really,up\n')
    with pytest.raises(InputError, match=r"line 3: .*quotation mark"):
        read('text,label\n"so, so",up\n"bad,down\n')


def test_cells_of_a_tsv_that_begin_with_a_quotation_mark_keep_their_rows() -> None:
    """Pandas kept only 160 of these 300 rows."""
    rows = [
        (f'"quoted {n}' if n % 2 else f'plain {n}"', "up" if n % 3 else "down") for n in range(300)
    ]
    text = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    found = read(text, usual="\t")
    assert found.rows == [list(row) for row in rows]
    assert found.summary == "separated by tabs, quotation marks kept"


def test_a_quoted_text_of_a_tsv_with_a_tab_in_each_line_is_one_text() -> None:
    text = 'text\tlabel\nfine\tup\n"a\tb\nc"\tdown\npoor\tdown\n'
    assert read(text, usual="\t").rows == [["fine", "up"], ["a\tb\nc", "down"], ["poor", "down"]]


def test_quotation_marks_that_open_no_cell_are_letters() -> None:
    found = read('text,label\n"good" film,up\n"bad,down\n')
    assert found.rows == [['"good" film', "up"], ['"bad', "down"]]
    assert found.summary == "separated by commas, quotation marks kept"


def test_a_tsv_with_quoted_cells_loses_its_quotation_marks() -> None:
    found = read('text\tlabel\n"a\tb"\tup\n"c ""d"""\t"down"\n', usual="\t")
    assert found.rows == [["a\tb", "up"], ['c "d"', "down"]]


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        ("text,label", ['"I like it,up', 'she said yes",down']),
        ("text,label", ['"I like it,up', "so so,down", 'she said yes",down']),
        ("label,text", ['up,"I like it', 'down,she said yes"']),
    ],
)
def test_rows_hidden_in_an_open_quotation_mark_are_detected(header: str, lines: list[str]) -> None:
    plain = ["fine,up", "poor,down"] if header.startswith("text") else ["up,fine", "down,poor"]
    text = "\n".join([header, *plain, *lines]) + "\n"
    with pytest.raises(InputError, match=r"a\.csv line 4: .*rows of their own"):
        read(text)


def test_a_text_of_several_lines_with_commas_is_accepted() -> None:
    text = 'label,text\nup,fine\nup,"So, up\nand, down\nhe goes"\ndown,poor\n'
    assert read(text).rows[1] == ["up", "So, up\nand, down\nhe goes"]


def test_files_without_rows() -> None:
    assert read("text,label\n").rows == []
    with pytest.raises(InputError, match="is empty"):
        read("\n\n")


def test_orange_files_are_recognised_among_files_with_tabs() -> None:
    orange = 'Category\tText\nd\tstring\nclass\t\n\t\nup\t"good\ndown\tbad\n'
    found = orange_grid(orange, "a.tab")
    assert found is not None
    assert found.header == ["Category", "Text"]
    assert found.rows == [["up", '"good'], ["down", "bad"]]
    with_attribute = orange_grid(orange.replace("class\t\n", "class\tinclude=True\n"), "a.tab")
    assert with_attribute == found
    assert orange_grid("Category\tText\nup\tgood\ndown\tbad\n", "a.tab") is None


def test_a_message_is_one_line() -> None:
    with pytest.raises(InputError) as refused:
        read("a;b\n1;2;3\n")
    assert re.fullmatch(r"[^\n]+", str(refused.value))


def test_excels_sep_line_sets_the_separator() -> None:
    assert read("sep=;\r\ntext;label\r\na, b;up\r\n").rows == [["a, b", "up"]]
