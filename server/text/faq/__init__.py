"""Question and answer pairs from FAQ pages in HTML, Markdown or POD."""
