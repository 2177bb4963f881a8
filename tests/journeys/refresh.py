"""Write the present output of the fast documented commands into the pages: python -m tests.journeys.refresh

For a change of wording on purpose; look at the difference before you commit it. Outputs with `...` stay.
"""

from __future__ import annotations

import tempfile

from tests.journeys.test_documented import FAST, ROOT, printed


def main() -> None:
    for command in FAST:
        page = ROOT / command.page
        text = page.read_text(encoding="utf-8")
        now = printed(command, tempfile.gettempdir()).stdout.rstrip("\n")
        if "\n...\n" not in f"\n{command.output}\n" and now != command.output:
            assert command.output in text
            page.write_text(text.replace(command.output, now), encoding="utf-8")
            print(f"{command.page}: {' '.join(command.words)}")


if __name__ == "__main__":
    main()
