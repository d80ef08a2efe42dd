"""The report in a browser: it shows, in light and dark, wide and narrow, and nothing in it runs."""

import math
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from s2l_ray.report import blocks as b
from s2l_ray.report.html import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
]
DARK, LIGHT = "--blink-settings=preferredColorScheme=0", "--blink-settings=preferredColorScheme=1"

HOSTILE = (
    "<script>document.title='acted'</script></title></style><script>document.title='acted'</script>"
    "<img src=x onerror=\"document.title='acted'\">{{ 7*7 }}\x00\u202e\ud800 " + "unbroken" * 40
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")


def sample_page() -> b.Page:
    """Return a page with every kind of block, a long table and a hostile row."""
    steps = list(range(0, 1001, 100))
    falling = [3.2 * math.exp(-step / 400) + 0.4 for step in steps]
    arms = [
        b.Series("s2l", steps, falling, [v - 0.1 for v in falling], [v + 0.1 for v in falling]),
        b.Series("random", steps, [v + 0.3 if step != 500 else None for step, v in zip(steps, falling, strict=True)]),
        b.Series("all rows", steps, [0.9 * v for v in falling]),
    ]
    clusters = [
        b.Series(f"cluster {i}", steps, [3 * math.exp(-s * i / 4000) + i / 40 for s in steps], weight=3 * i * i + 5)
        for i in range(1, 25)
    ]
    names = ["s2l", "random", "middle perplexity", "facility location", HOSTILE]
    table = [[name, 1000 * 3**i, 0.5 + i / 30, None if i == 2 else i / 7] for i, name in enumerate(names)]
    long = [[f"arithmetic/{i}", i * 37, 1 / (i + 1), "algebra, geometry and counting"] for i in range(60)]
    intervals = [b.Interval(name, i / 10 - 0.1, i / 10 - 0.25, i / 10 + 0.05) for i, name in enumerate(names)]
    overview = b.Section(
        "Result",
        "S2L scores 61.2 % with half of the rows; all rows score 61.9 %.",
        [
            b.Facts([("Rows in", 26212), ("Budget", "50 %"), ("Seed", 7), ("Held-out loss", 0.41372), ("Peak", None)]),
            b.Warnings(["Three of 40 clusters hold fewer than ten rows.", HOSTILE]),
            b.Table(["Arm", "Rows", "Accuracy", "Gain"], table, ["Rows", "Accuracy", "Gain"], "Arms", [0]),
            b.Intervals(intervals, "difference from random", 0.0, "no difference", "Differences"),
        ],
    )
    training = b.Section(
        "Training",
        "",
        [
            b.Text(["The loss of the target on held-out rows.", "It falls."]),
            b.Lines(arms, "step", "held-out loss", [b.Mark(400, falling[4], "S2L overtakes")], caption="Loss"),
            b.Lines(clusters, "step", "loss of the proxy", weight_label="rows", caption="Clusters"),
            b.Bars(["before", "after"], [b.Bar(n, [i + 1.5, None if i == 1 else 2 * i]) for i, n in enumerate(names)]),
            b.Bars(["n"], [b.Bar("gain", [12.0]), b.Bar("loss", [-7.0]), b.Bar("none", [0.0])], "points"),
        ],
    )
    rows = b.Section(
        "Rows",
        "Rows of the data, in full.",
        [
            b.ExampleRows(
                [
                    b.ExampleRow("row 17", [("instruction", "What is 3 * 4?"), ("output", "12\n\nAs 3 * 4 = 12.")]),
                    b.ExampleRow(HOSTILE, [(HOSTILE, HOSTILE), ("loss", 0.25)]),
                ]
            ),
            b.Table(["Topic", "Rows", "Share", "What it holds"], long, ["Rows", "Share"], "Topics"),
            b.Code("s2l run workflows/quickstart.yaml \\\n  --set select.budget=0.5\n" + HOSTILE),
        ],
    )
    return b.Page("S2L on MathInstruct", "quickstart, 24 November 2026", [overview, training, rows])


def chromium(source: Path, *flags: str) -> str:
    """Open the file and return what the browser prints."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={source.parent / 'profile'}", *flags, source.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def pixels_of(png: bytes) -> list[list[tuple[int, ...]]]:
    """Return the rows of pixels of a PNG without interlacing [red, green, blue, and alpha if it has one]."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed, header = 8, b"", b""
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        header, packed = (body if kind == b"IHDR" else header), packed + (body if kind == b"IDAT" else b"")
        at += 12 + length
    width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    assert (depth, interlaced) == (8, 0)
    size = {2: 3, 6: 4}[colours]
    raw, rows, above = zlib.decompress(packed), [], [0] * (width * size)
    for y in range(height):
        kind, *row = raw[y * (width * size + 1) : (y + 1) * (width * size + 1)]
        for i in range(len(row)) if kind else ():
            left, up, corner = (row[i - size], above[i], above[i - size]) if i >= size else (0, above[i], 0)
            nearest = min((left, up, corner), key=lambda v: abs(left + up - corner - v))
            row[i] = (row[i] + (0, left, up, (left + up) // 2, nearest)[kind]) % 256
        rows.append([tuple(row[i : i + size]) for i in range(0, len(row), size)])
        above = row
    return rows


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(sample_page()), encoding="utf-8")
    return path


def test_browser_runs_scripts_where_a_page_has_them(tmp_path):
    """Without this the next test could pass in a browser that runs nothing."""
    (tmp_path / "page.html").write_text(f"<!doctype html><title>quiet</title>{HOSTILE}".replace("\ud800", ""), "utf-8")
    assert "<title>acted</title>" in chromium(tmp_path / "page.html", "--dump-dom")


def test_browser_shows_the_report_and_runs_nothing_of_it(report):
    shown = chromium(report, "--dump-dom")
    assert "<title>S2L on MathInstruct</title>" in shown
    assert "<script" not in shown
    assert "<img" not in shown
    assert "{{ 7*7 }}" in shown
    assert shown.count("<h2>") == 3
    assert shown.rstrip().endswith("</html>")


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 500], ids=["desktop", "phone"])
def test_report_is_drawn_in_its_theme(report, tmp_path, width, theme):
    picture = tmp_path / "page.png"
    chromium(report, theme, f"--window-size={width},500", f"--screenshot={picture}")
    rows = pixels_of(picture.read_bytes())
    assert len(rows[0]) == width
    page = (0x14, 0x17, 0x1B) if theme == DARK else (0xFF, 0xFF, 0xFF)
    assert rows[0][0][:3] == page
    inked = [sum(pixel[:3] != page for pixel in row) for row in rows]
    assert 0.01 < sum(inked) / (width * len(rows)) < 0.5
    assert len({pixel for row in rows for pixel in row}) > 30


def test_nothing_reaches_over_the_edge_of_a_narrow_window(report, tmp_path):
    picture = tmp_path / "page.png"
    chromium(report, LIGHT, "--window-size=500,4000", f"--screenshot={picture}")
    rows = pixels_of(picture.read_bytes())
    assert {pixel[:3] for row in rows for pixel in row[-8:]} == {(0xFF, 0xFF, 0xFF)}


def test_report_prints(report, tmp_path):
    paper = tmp_path / "report.pdf"
    chromium(report, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert paper.read_bytes().startswith(b"%PDF")
    assert paper.stat().st_size > 20_000
