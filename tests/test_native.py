"""C code is compiled once, and NumPy replaces it if it can't be compiled."""

import ctypes
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lowrank_study import native
from lowrank_study.spectra import eigenvalues

ROOT = Path(__file__).parents[1]
NATIVE = Path(native.__file__).parent
NEEDS_COMPILER = pytest.mark.skipif(native.shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Start with an empty cache, in the folder and in the process, and compile in a hurry."""
    monkeypatch.setenv("LOWRANK_STUDY_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", ("-O0", *native.FLAGS[1:]))
    native._load.cache_clear()
    yield tmp_path / "native"
    native._load.cache_clear()


@pytest.fixture
def fake_compiler(monkeypatch, tmp_path):
    """Give a function that puts a shell script in the compiler's place."""

    def put(script):
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "cc").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "cc").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return put


@NEEDS_COMPILER
def test_a_source_is_compiled_once(cache, monkeypatch):
    code = native.library("tridiagonal.c")
    assert code.tiles_length(ctypes.c_int64(48)) == 48 * 48
    (made,) = cache.iterdir()
    assert made.name.startswith("tridiagonal-")
    native._load.cache_clear()
    monkeypatch.setattr(native, "_compile", None)
    assert native.library("tridiagonal.c") is not None
    assert list(cache.iterdir()) == [made]


@NEEDS_COMPILER
def test_another_processor_or_version_has_a_library_of_its_own(cache, monkeypatch):
    native.library("tridiagonal.c")
    for name, value in (("_instruction_sets", lambda: ["other"]), ("FLAGS", (*native.FLAGS, "-g"))):
        native._load.cache_clear()
        monkeypatch.setattr(native, name, value)
        assert native.library("tridiagonal.c") is not None
    assert len(list(cache.iterdir())) == 3


@NEEDS_COMPILER
def test_a_compiler_without_the_native_target_is_enough(cache, monkeypatch):
    monkeypatch.setattr(native, "TARGETS", (("-march=no-such-processor",), ()))
    assert native.library("tridiagonal.c") is not None


@NEEDS_COMPILER
def test_two_processes_may_compile_at_once(cache):
    script = (
        f"import ctypes, sys; from lowrank_study import native; native.FLAGS = {native.FLAGS};"
        "sys.stdin.read(1); code = native.library('tridiagonal.c');"
        "print(code.tiles_length(ctypes.c_int64(96)) // 48**2)"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for racer in racers:
        racer.stdin.write("x")
        racer.stdin.flush()
    for racer in racers:
        assert racer.communicate(timeout=120) == ("3\n", "")
    assert len(list(cache.iterdir())) == 1


def test_the_switch_turns_it_off(cache, monkeypatch):
    monkeypatch.setattr(native, "wanted", False)
    assert native.library("tridiagonal.c") is None
    assert not cache.exists()


def test_a_missing_compiler_is_not_logged(cache, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native.library("tridiagonal.c") is None
    assert caplog.records == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo notes >&2; echo 'x.c:1: error: no such thing' >&2; exit 1", "no such thing"),
        ("exit 3", "status 3"),
        ('while [ "$1" != -o ]; do shift; done; echo no library > "$2"', "made.so|tridiagonal-"),
        ("true", "made.so"),
    ],
)
def test_a_failed_compilation_logs_one_line_and_gives_no_library(
    cache, fake_compiler, caplog, monkeypatch, script, said
):
    fake_compiler(script)
    monkeypatch.setattr(eigenvalues, "NATIVE_FROM", 1)
    X = np.random.default_rng(0).standard_normal((9, 5))
    for _ in range(3):
        gram = eigenvalues.GramMatrix(5)
        gram.add(X)
        np.testing.assert_allclose(gram.eigenvalues(), np.linalg.eigvalsh(X.T @ X), rtol=1e-12)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "tridiagonal.c" in record.message
    assert any(word in record.message for word in said.split("|"))
    assert "\n" not in record.message


def test_an_unwritable_cache_logs_one_line_and_gives_no_library(cache, caplog):
    cache.write_text("a file where the folder should be")
    assert native.library("tridiagonal.c") is None
    (record,) = caplog.records
    assert "tridiagonal.c" in record.message


def test_sources_are_in_the_package():
    """Check what setuptools packs, because a missing source shows only after installation."""
    import tomllib

    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert packed["package-data"]["lowrank_study.native"] == ["*.c", "*.h"]
    assert list((ROOT / "lowrank_study" / "native").glob("*.c"))


@NEEDS_COMPILER
def test_a_damaged_library_is_compiled_again(cache):
    native.library("tridiagonal.c")
    (made,) = cache.iterdir()
    content = made.read_bytes()
    for position in (len(content) // 3, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[position] ^= 4
        replaced = made.with_suffix(".part")
        replaced.write_bytes(damaged)
        replaced.replace(made)  # a new file: the old one is mapped into this process
        native._load.cache_clear()
        code = native.library("tridiagonal.c")
        assert code.tiles_length(ctypes.c_int64(48)) == 48 * 48
        assert made.read_bytes() == content


@NEEDS_COMPILER
@pytest.mark.parametrize("source", sorted(file.name for file in NATIVE.glob("*.c")))
def test_every_source_compiles(cache, source):
    assert native.library(source) is not None
