import shutil

import pytest

from bitllm.metrics import java as module
from bitllm.metrics.java import java_command, java_version, last_words, why_no_meteor, why_no_ptb


def test_java_home_comes_before_the_path(fake_java, tmp_path, monkeypatch):
    on_path = fake_java("exit 0")
    assert java_command() == str(on_path)
    home = tmp_path / "jdk"
    (home / "bin").mkdir(parents=True)
    shutil.copy(on_path, home / "bin" / "java")
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert java_command() == str(home / "bin" / "java")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "gone"))
    assert java_command() == str(on_path)


def test_the_version_is_read_from_the_file_beside_java(fake_java):
    java = fake_java("exit 0")
    assert java_version() is None
    (java.parent.parent / "release").write_text('IMPLEMENTOR="x"\nJAVA_VERSION="17.0.15"\n')
    assert java_version() == "17.0.15"
    (java.parent.parent / "release").write_text("nothing of the kind\n")
    assert java_version() is None


def test_without_java_there_is_no_version_and_a_reason(no_java):
    assert java_version() is None
    assert why_no_meteor() == "expected Java on the path, found none; install a Java runtime"


def test_a_missing_jar_names_the_extra(fake_java, monkeypatch):
    fake_java("exit 0")
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    for problem in (why_no_meteor(), why_no_ptb()):
        assert problem is not None
        assert ".jar of pycocoevalcap, found none; install `bitllm[eval]`" in problem


@pytest.mark.parametrize(
    ("stderr", "telling"),
    [
        (b"", "no message"),
        (b"one\nout of memory\n", "out of memory"),
        (
            b'Exception in thread "main" java.lang.NoClassDefFoundError: x\n'
            b"\tat edu.anu.Main(Main.java:3)\n\t... 3 more\n",
            'Exception in thread "main" java.lang.NoClassDefFoundError: x',
        ),
    ],
)
def test_the_line_that_tells_is_found_in_what_java_said(stderr, telling):
    assert last_words(stderr) == telling
