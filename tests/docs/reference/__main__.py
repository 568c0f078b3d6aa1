"""`python -m tests.docs.reference` rewrites every generated page below docs/ and prints the ones that changed."""

from tests.conftest import ROOT
from tests.docs.reference.pages import pages


def main() -> None:
    for name, text in pages().items():
        path = ROOT / "docs" / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"docs/{name}")


if __name__ == "__main__":
    main()
