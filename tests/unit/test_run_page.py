"""The page of a run: what it warns about, what it says of costs and theory, and that data never acts in it."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from s2l_ray.costs import Ledger, Work
from s2l_ray.report.blocks import ExampleRow
from s2l_ray.report.html import render
from s2l_ray.report.run_facts import ArmFacts, Centroid, ClusterFacts, Composition, RunFacts
from s2l_ray.report.run_page import run_page

HOSTILE = "</style></title><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}\x00\u202e"
GRADIENTS = {
    "model": "proxy",
    "step": 10,
    "rows": 20,
    "exact": True,
    "within": 0.4,
    "between": 0.1,
    "low": 0.2,
    "high": 0.4,
    "p_value": 0.001,
    "pairs_within": 10,
    "pairs_between": 180,
}
DIAGNOSTICS = {
    "health": {"learned early": 80, "learned late": 5, "forgotten": 5, "never learned": 5, "rising": 5},
    "roughness": 1.1,
    "clusterings": {
        "rows": 100,
        "silhouette": 0.25,
        "prefixes": [{"checkpoints": 1, "adjusted_rand": 0.2}, {"checkpoints": 2, "adjusted_rand": 0.75}],
        "ceiling": 0.8,
    },
    "gradients": [GRADIENTS],
    "correlation": {"all": 0.7, "unseen": 0.6, "rows_unseen": 50},
}


def ledger(saves: bool = True, seconds: float = 10.0) -> Ledger:
    selecting = [Work("train proxy", seconds, 100.0, 600.0), Work("draw", 0.0)]
    return Ledger(
        selecting, Work("fine-tune target", 20, 100.0, 6e3), Work("t", 100, 1e3 if saves else 100.0, 6e4), False
    )


def arm(name: str = "s2l", method: str = "paper", **changes) -> ArmFacts:
    made = ArmFacts(
        name=name,
        method=method,
        budget="0.1",
        reason="even share of its cluster",
        rows=10,
        rows_pool=100,
        rows_set_aside=0,
        metrics={"macro_loss": (0.5, 0.4, 0.6), "rows": (10.0, None, None)},
        baseline=None if name == "random" else "random",
        gains={} if name == "random" else {"macro_loss": (0.1, 0.05, 0.15), "micro_loss": (-0.2, None, None)},
        composition=[Composition("source", [("a", 0.9, 0.5), ("b", 0.1, 0.5)])],
        ledger=ledger(),
    )
    return replace(made, **changes)


def clustering(**changes) -> ClusterFacts:
    made = ClusterFacts(
        arms=["s2l"],
        steps=[5, 10],
        centroids=[Centroid("all 0", 60, 5, [2.0, 1.0]), Centroid("all 1", 40, 5, [3.0, 2.5])],
        inertia=[10.0, 8.0],
        set_aside={},
        rows=100,
        diagnostics=DIAGNOSTICS,
    )
    return replace(made, **changes)


NOISY = arm(composition=[Composition("labelled wrong", [("wrong", 0.05, 0.2)])])
ALIEN = {**DIAGNOSTICS, "correlation": {"all": 0.0, "unseen": 0.1, "rows_unseen": 5}}
UNLIKE = {**DIAGNOSTICS, "gradients": [{**GRADIENTS, "p_value": 0.4}]}


def facts(**changes) -> RunFacts:
    made = RunFacts(
        name="mine",
        arms=[arm("random", "random"), arm()],
        clusterings=[clustering()],
        overlap={"exact": 0, "digit_blind": 0, "ngram": 0},
        rows_held_out=50,
        examples=[ExampleRow("learned late", [("user", "hello")])],
        text="seed: 0\n",
        provenance=[("ray", "2.60")],
    )
    return replace(made, **changes)


def warnings(found: RunFacts) -> list[str]:
    (section,) = [section for section in run_page(found).sections if section.title == "Warnings"]
    return list(section.blocks[0].items)


def test_gains_are_drawn_about_no_gain_also_where_rows_count_as_they_occur():
    (outcome,) = [section for section in run_page(facts()).sections if section.title == "Outcome"]
    *_, scores, gains = outcome.blocks
    assert [row.label for row in scores.rows] == ["random", "s2l"]
    rows = [(row.label, row.value, row.low, row.high) for row in gains.rows]
    assert rows == [("macro: s2l over random", 0.1, 0.05, 0.15), ("micro: s2l over random", -0.2, None, None)]
    assert (gains.reference, gains.x_label) == (0.0, "gain in loss [nats/token]")
    (outcome,) = [section for section in run_page(facts(arms=[arm(gains={})])).sections if section.title == "Outcome"]
    assert len(outcome.blocks) == 2


def test_run_without_a_fault_warns_of_nothing():
    assert warnings(facts()) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"overlap": {"exact": 1, "digit_blind": 2, "ngram": 3}}, "word for word"),
        ({"arms": [arm("full", "full"), arm()]}, "No arm draws at random"),
        ({"arms": [arm("random", "random"), arm(ledger=ledger(seconds=500.0))]}, "costs more than it saves"),
        ({"arms": [arm("random", "random"), arm(ledger=ledger(saves=False))]}, "saves no time"),
        ({"arms": [arm("random", "random"), NOISY]}, "amplifies noise"),
        ({"clusterings": [clustering(set_aside={"not learned": 30})]}, "set 23% of the rows aside"),
        ({"clusterings": [clustering(set_aside={"not learned": 30, "duplicate": 900})]}, "set 23% of the rows aside"),
        ({"clusterings": [clustering(diagnostics=UNLIKE)]}, "no more alike"),
        ({"clusterings": [clustering(diagnostics=ALIEN)]}, "different rows hard"),
    ],
)
def test_fault_is_warned_about_once(changes, word):
    found = warnings(facts(**changes))
    assert len([text for text in found if word in text]) == 1
    assert len(found) == 1 or word == "saves no time"


def test_fewest_checkpoints_that_would_have_done_are_measured_against_what_two_starts_agree_to():
    (section,) = [section for section in run_page(facts()).sections if section.title == "Clusters"]
    assert "the first 2 would have done" in section.lead  # 0.75 is within a tenth of 0.8
    worse = {**DIAGNOSTICS, "clusterings": {**DIAGNOSTICS["clusterings"], "ceiling": 1.0}}
    (section,) = [
        s for s in run_page(facts(clusterings=[clustering(diagnostics=worse)])).sections if s.title == "Clusters"
    ]
    assert "none could have been left out" in section.lead


def test_break_even_is_said_in_fine_tunings():
    (section,) = [section for section in run_page(facts()).sections if section.title == "Cost"]
    assert any("after 0.1 fine-tunings" in text for text in section.blocks[1].paragraphs)


def test_page_without_clusters_or_rows_has_no_section_of_them():
    titles = [section.title for section in run_page(facts(clusterings=[], examples=[])).sections]
    assert "Rows" not in titles
    assert "Clusters" not in titles


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[str]]] = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, [name for name, _ in attributes]))


def test_hostile_data_never_acts_in_the_page():
    found = facts(
        name=HOSTILE,
        arms=[arm(HOSTILE, HOSTILE, composition=[Composition("source", [(HOSTILE, 0.5, 0.5), ("b", 0.5, 0.5)])])],
        clusterings=[clustering(arms=[HOSTILE], centroids=[Centroid(HOSTILE, 3, 1, [1.0, 2.0])])],
        examples=[ExampleRow(HOSTILE, [(HOSTILE, HOSTILE)])],
        text=HOSTILE,
    )
    html = render(run_page(found))
    elements = Elements()
    elements.feed(html)
    assert not {tag for tag, _ in elements.found} & {"script", "img", "iframe", "link", "object"}
    assert not [name for _, names in elements.found for name in names if name.startswith("on")]
    assert "{{ 7*7 }}" in html
