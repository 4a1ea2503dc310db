"""The report's pages: one file that needs nothing else, the same content in HTML and Markdown, for any run."""

import html
import json
import re
import shutil
from pathlib import Path

import pytest
import ray
from support.benchmark_table import TABLE
from support.finished_run import DEMO, HOSTILE, NAMES, finished, report
from support.html_page import Page
from support.manifests import finish

from cluster.masking import without_secrets
from data.run_layout import MANIFEST, REPORT, read_record, write_record
from data.stage_files import record_files
from data.stage_metrics import GroupMetrics, KlMetrics, PolicyMetrics, SelectionMetrics
from data.steering_metrics import ReportMetrics, SteeringCurve
from jobs.report import main
from jobs.reporting.blocks import duration
from jobs.reporting.page import page_parts, write_pages
from jobs.reporting.rows import answers_by_value, spreads
from jobs.reporting.tables import Table, shown
from jobs.runner.stage import Run

BENCHMARKED = ["benchmarks", "rewardbench", "judged-answers"]
ALL_PARTS = [
    "headline",
    "steering",
    "cross-talk",
    "combined",
    "dialogue",
    "judge",
    "length",
    "witnesses",
    *BENCHMARKED,
    "answers",
    "rounds",
    "annotation",
    "predictor",
]
ALL_PARTS += ["trainings", "counts", "lineage", "settings"]


def pages(run: Run) -> tuple[str, str]:
    folder = run.folder("report")
    write_pages(run, read_record(folder / REPORT, ReportMetrics), folder)
    return (folder / "report.html").read_text(), (folder / "report.md").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = finished(tmp_path_factory.mktemp("runs"))
    finish(run.root, "benchmarks/table", TABLE)
    return run


@pytest.fixture(scope="module")
def written(run: Run) -> tuple[str, str]:
    return pages(run)


def test_every_part_is_there_in_order_and_says_what_one_sees(run: Run, written: tuple[str, str]) -> None:
    parts = page_parts(run, report(run), run.folder("report"))
    assert [part.name for part in parts] == ALL_PARTS
    assert all(part.about.endswith(".") and len(part.about) > 60 and part.blocks for part in parts)
    page = Page(written[0])
    assert [attributes["id"] for attributes in page.named("section")] == ALL_PARTS
    assert [attributes["href"] for attributes in page.named("a")] == [f"#{name}" for name in ALL_PARTS]
    assert re.findall(r"^## (.*)$", written[1], re.MULTILINE) == [part.title for part in parts]


def test_a_page_needs_nothing_else_and_everyone_can_read_it(written: tuple[str, str]) -> None:
    text, _ = written
    page = Page(text)
    assert page.named("html") == [{"lang": "en"}]
    assert any(attributes.get("name") == "viewport" for attributes in page.named("meta"))
    assert re.findall(r'https?://[^"\s<]*', text) == [
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    ] * len(page.named("svg"))
    assert {*page.values("src"), *(h for h in page.values("href") if not h.startswith("#"))} == {"data:,"}
    assert not page.named("script")
    assert [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)] == ["h1", *["h2"] * len(ALL_PARTS)]
    assert len(page.named("table")) == len(page.named("caption")) == len(page.named("thead")) > 10
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.named("th"))
    assert len(page.named("svg")) == 4 * len(NAMES) + 3 + 5 + 2 + 2  # two witnesses, two tasks of a benchmark
    assert all(
        attributes["role"] == "img" and len(attributes["aria-label"] or "") > 20 for attributes in page.named("svg")
    )


def test_ids_are_unique_and_every_reference_has_one(written: tuple[str, str]) -> None:
    text, _ = written
    page = Page(text)
    ids = page.values("id")
    assert len(ids) == len(set(ids)) > 100
    referred = {
        *re.findall(r'href="#([^"]+)"', text),
        *re.findall(r"url\(#([^)]+)\)", text),
        *page.values("aria-labelledby"),
    }
    assert referred <= set(ids)


def test_markdown_has_the_very_cells_of_the_page(written: tuple[str, str], run: Run) -> None:
    text, markdown = written
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in outside.splitlines() if line.startswith("| ")]
    rows = [
        [html.unescape(re.sub(r"\\(.)", r"\1", cell)) for cell in re.split(r" \| ", line[2:].removesuffix(" |"))]
        for line in lines
    ]
    assert rows == [[html.unescape(cell) for cell in row] for row in Page(text).rows]
    assert ["humor", "0.93", "yes", "0.10", "3.90", "0.12"] in rows
    assert ["verbosity", "–", "no", "0.10", "3.90", "0.12"] in rows
    assert ["setting 1", "4 → 3.81", "1 → 1.23", "0.21", "30"] in rows
    assert ["humor", "900", "0.94", "0.15", "0.90", "0.61", "0.66"] in rows
    assert ["round 1", "duplicate", "3", "7.5%"] in rows
    assert ["lab", "empty_message", "1"] in rows
    for picture in re.findall(r"\]\((figures/[^)]*)\)", outside):
        assert (run.folder("report") / picture).read_text().startswith("<svg ")
    assert len((run.folder("report") / "figures").files()) == len(Page(text).named("svg"))


def test_an_answer_stays_text_whatever_it_says(written: tuple[str, str]) -> None:
    text, markdown = written
    assert html.escape(HOSTILE, quote=False) in text
    assert "<script" not in text
    fenced = re.findall(r"^(`{3,})text\n(.*?)\n\1$", markdown, re.DOTALL | re.MULTILINE)
    answers = [(fence, said) for fence, said in fenced if "Owls" in said]
    assert answers == [("````", HOSTILE)] * (2 * len(NAMES) * 5), (
        "a fence longer than the one in the answer, for two questions an attribute"
    )


def test_the_command_makes_the_very_same_pages_again_without_ray(
    written: tuple[str, str], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, was_up = run.folder("report"), ray.is_initialized()
    main([DEMO, f"storage={run.preset.storage}"])
    assert ray.is_initialized() == was_up
    assert ((folder / "report.html").read_text(), (folder / "report.md").read_text()) == written
    assert "2026-11-22" in written[0], "dates of the run, and none of today"
    assert not re.search(r"<metadata|<dc:date|matplotlib", written[0])
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["html"], said["bytes"], said["figures"]) == (
        (folder / "report.html").uri,
        len(written[0].encode()),
        written[0].count("<svg "),
    )


@pytest.mark.case("A2: pages beside pictures of others")
def test_pages_written_again_replace_their_own_pictures_alone(tmp_path: Path) -> None:
    run = finished(tmp_path)
    folder = run.folder("report")
    for name in ("of-an-earlier-page.svg", "mine.svg"):
        (folder / "figures" / name).write_bytes(b"<svg/>")
    done = run.manifest("report")
    assert done
    mine = (folder / "figures" / "mine.svg").read_text()
    (folder / "figures" / "mine.svg").remove()
    write_record(folder / MANIFEST, done.model_copy(update={"files": record_files(folder)}))
    (folder / "figures" / "mine.svg").write_bytes(mine.encode())
    main([DEMO, f"storage={tmp_path}"])
    assert not (folder / "figures" / "of-an-earlier-page.svg").exists()
    assert (folder / "figures" / "mine.svg").read_text() == mine
    found = run.difference("report")
    assert found
    assert (found.is_damage, found.foreign) == (False, ("figures/mine.svg",))


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main([DEMO, f"storage={tmp_path}"])
    error = f"python -m jobs.report: the report of {tmp_path}/demo is not finished; "
    assert capsys.readouterr().err == error + "run `python -m jobs.run` with the same preset first\n"


def test_a_run_without_bootstrap_and_without_truth_has_the_other_parts(tmp_path: Path) -> None:
    run = finished(
        tmp_path,
        "bootstrap.rounds=0",
        "rows.sources=[{name: mine, format: messages, uri: s3://key:hush@bucket/rows.jsonl}]",
    )
    folder = run.folder("report")
    without = {"judge": {}, "judge_note": "", "rounds": (), "measured_by": "by the predictor"}
    write_record(folder / REPORT, report(run).model_copy(update=without))
    text, markdown = pages(run)
    assert [attributes["id"] for attributes in Page(text).named("section")] == [
        name for name in ALL_PARTS if name not in ("judge", "rounds", *BENCHMARKED)
    ]
    assert "Answers were measured by the predictor." in markdown
    assert "hush" not in text + markdown
    assert "s3://...@bucket/rows.jsonl" in markdown


def test_a_round_of_steerlm2_shows_how_its_kl_went(tmp_path: Path) -> None:
    run = finished(tmp_path)
    selected, policy = "bootstrap-1/selected", "bootstrap-1/policy"
    weighed, trained = run.metrics(selected, SelectionMetrics), run.metrics(policy, PolicyMetrics)
    assert weighed
    assert trained
    groups = GroupMetrics(prompts=123, kl=0.81, effective=2.57)
    finish(run.root, selected, weighed.model_copy(update={"groups": groups}))
    kl = KlMetrics(first=0.79, last=0.42, held_out=None)
    finish(run.root, policy, trained.model_copy(update={"kl": kl}))
    part = next(part for part in page_parts(run, report(run), run.folder("report")) if part.name == "rounds")
    [table] = [block for block in part.blocks if isinstance(block, Table) and block.columns[0] == "SteerLM 2.0"]
    assert list(table.rows) == [["round 1", 123, 2.57, 0.81, 0.79, 0.42, None]]


def test_a_run_that_left_next_to_nothing_still_has_a_page(tmp_path: Path) -> None:
    run = finished(tmp_path)
    for stage in ("rows", "base", "predictor", "annotated", "policy", "bootstrap-1", "report/answers"):
        shutil.rmtree(run.folder(stage).path)
    curve = SteeringCurve(
        requested=(0.0, 4.0),
        measured=(0.5, None),
        n=4,
        spearman=None,
        slope=None,
        monotonic=False,
        reached=(0.5, 0.5),
        mean_absolute_gap=0.0,
    )
    bare = ReportMetrics(
        policy="/elsewhere/policy",
        policy_stage="policy",
        measured_by="by the predictor",
        steering={"humor": curve},
        requested_best={},
        at_best_settings={},
    )
    write_pages(run, bare, run.folder("report"))
    page = Page((run.folder("report") / "report.html").read_text())
    assert [attributes["id"] for attributes in page.named("section")] == ["headline", "steering", "settings"]
    assert ["humor", "–", "no", "0.50", "0.50", "0.00"] in page.rows
    assert len((run.folder("report") / "figures").files()) == 1


def test_values_are_counted_as_a_prompt_would_show_them(run: Run) -> None:
    before, after = (
        spreads(run.folder("rows") / "rows", "human", run.schema),
        spreads(run.folder("annotated") / "rows", "predicted", run.schema),
    )
    assert set(before) == set(NAMES[:3]), "nobody rated the others"
    assert (before["humor"].counts, before["humor"].mean) == ((4, 4, 4, 4, 4), 2.0)
    assert after["verbosity"].counts == (0, 0, 0, 20, 0)
    assert after["verbosity"].mean == pytest.approx(2.6)
    assert spreads(run.folder("nowhere"), "human", run.schema) == {}


def test_answers_are_in_order_of_the_requested_value(run: Run) -> None:
    found = answers_by_value(run.folder("report") / "answers", run.schema, 2)
    assert {name: list(questions) for name, questions in found.items()} == {name: ["Owls?", "Bees?"] for name in NAMES}
    assert [row.requested[-1]["humor"] for row in found["humor"]["Bees?"]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ("s3://key:se/cr@et@bucket/x", "s3://...@bucket/x"),
        ("hf://datasets/a/b@main/rows.parquet", "hf://datasets/a/b@main/rows.parquet"),
        ("s3://key:secret@bucket/x", "s3://...@bucket/x"),
        ("https://token@host/x y", "https://...@host/x y"),
        ("https://host/rows.jsonl?X-Amz-Signature=abc&x=1", "https://host/rows.jsonl?..."),
        ("s3://bucket/part-?.jsonl", "s3://bucket/part-?.jsonl"),
        (
            {"api_key": "abc", "max_tokens": 5, "deep": [{"password": "x"}]},
            {"api_key": "...", "max_tokens": 5, "deep": [{"password": "..."}]},
        ),
        ({"pack_tokens": 1024, "name": "a@b", "key": ""}, {"pack_tokens": 1024, "name": "a@b", "key": ""}),
    ],
)
def test_secrets_are_masked_and_nothing_else(value: object, masked: object) -> None:
    assert without_secrets(value) == masked


def test_cells_are_what_people_read() -> None:
    cells = [None, float("nan"), True, False, 1234, 0.005, -0.001, 1234.5, "x"]
    assert [shown(cell) for cell in cells] == ["–", "–", "yes", "no", "1,234", "0.01", "0.00", "1,234.50", "x"]
    assert [duration(s) for s in (0.3, 59.2, 61.2, 3700)] == ["0.3 s", "59.2 s", "1 min 1 s", "1 h 1 min"]
