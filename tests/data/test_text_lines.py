"""Text in other encodings is read where a mark or the user says so, and named where it cannot be read."""

import pytest

from deepseek.data.readers import documents, iter_documents
from deepseek.data.text_lines import DataError, ReadOptions

TEXT = "déjà vu\n" * 3 + "end"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "cp1252", "utf-8", "gb18030"])
def test_the_user_may_say_the_encoding(tmp_path, encoding):
    file, options = str(tmp_path / "a.txt"), ReadOptions(encoding=encoding)
    (tmp_path / "a.txt").write_text(f"one\n<|endoftext|>\n{TEXT}", encoding)
    (_, position), _ = pairs = list(iter_documents(file, options=options))
    assert [text for text, _ in pairs] == ["one", TEXT]
    assert list(iter_documents(file, position, options)) == pairs[1:]


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (TEXT.encode("cp1252"), "auto", "not UTF-8 text at byte 1; if it is of Windows (CP1252), --encoding cp1252 reads it"),
        (TEXT.encode("utf-16-le"), "auto", "byte 1 is NUL; if it is UTF-16, --encoding utf-16-le reads it"),
        (TEXT.encode("utf-16-be"), "auto", "--encoding utf-16-be reads it"),
        (b"\x89\1\2\3", "auto", "is not UTF-8 text at byte 0."),
        (b"a\x81b", "cp1252", "is not cp1252 text: 'charmap' codec can't decode byte 0x81"),
        (TEXT.encode("utf-16")[:-1], "auto", "is not utf-16 text: 'utf-16-le' codec can't decode byte"),
    ],
)  # fmt: skip
def test_text_in_an_unknown_encoding_is_named(tmp_path, content, encoding, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(documents(str(tmp_path / "a.txt"), ReadOptions(encoding=encoding)))
    assert message in str(caught.value)
