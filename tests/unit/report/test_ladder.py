from __future__ import annotations

import re
from types import ModuleType

from emulator.report.ladder import FOLD_ABOVE, Fold, ladder, lanes_of, symbol, symbols


def test_lanes_stand_in_the_order_in_which_the_packet_enters_them(synthetic: ModuleType) -> None:
    journey = synthetic.walk(synthetic.flannel_vxlan(synthetic.echo("10.244.1.2", "10.244.2.2")))
    lanes = lanes_of([journey], {"node/n2": "second"})
    assert [lane.name for lane in lanes] == ["a", "n1", "wire", "n2", "b"]
    assert [lane.title for lane in lanes] == [
        "pod default/a",
        "node n1",
        "the wire (underlay)",
        "second",
        "pod default/b",
    ]


def test_every_hop_is_a_rung_and_marks_tell_changed_from_unchanged(synthetic: ModuleType) -> None:
    journey = synthetic.walk(synthetic.flannel_vxlan(synthetic.echo("10.244.1.2", "10.244.2.2")))
    one = ladder(journey, lanes_of([journey], {}))
    changed = [rung.number for rung in one.rungs if not rung.quiet and rung.number > 1]
    assert len(one.rungs) == len(journey.hops) == 12
    assert changed == [4, 5, 9, 10]
    assert one.rungs[-1].mark == "end"


def test_the_last_hop_of_a_lost_packet_is_marked_as_lost(synthetic: ModuleType) -> None:
    journey = synthetic.walk(synthetic.calico_bgp(synthetic.echo("10.244.1.2", "10.244.2.2"))[:5])
    assert ladder(journey, lanes_of([journey], {}), arrived=False).rungs[-1].mark == "lost"


def test_a_reply_shares_the_lanes_of_its_request(synthetic: ModuleType) -> None:
    steps = synthetic.calico_bgp(synthetic.echo("10.244.1.2", "10.244.2.2"))
    request = synthetic.walk(steps)
    reply = synthetic.walk(synthetic.backwards(steps, "10.244.2.2", "10.244.1.2", icmp=True))
    one = ladder(reply, lanes_of([request, reply], {}))
    assert [rung.lane for rung in one.rungs] == sorted((rung.lane for rung in one.rungs), reverse=True)


def test_long_ways_fold_unchanged_hops_but_lose_none(synthetic: ModuleType) -> None:
    journey = synthetic.walk(synthetic.through_racks(synthetic.echo("10.244.1.2", "10.244.2.2")))
    one = ladder(journey, lanes_of([journey], {}))
    folds = [item for item in one.items if isinstance(item, Fold)]
    assert len(journey.hops) > FOLD_ABOVE
    assert folds
    assert [rung.number for rung in one.rungs] == list(range(1, len(journey.hops) + 1))
    assert all(len({rung.lane for rung in fold.rungs}) == 1 for fold in folds)
    assert all(rung.quiet for fold in folds for rung in fold.rungs)


def test_short_ways_are_not_folded(synthetic: ModuleType) -> None:
    journey = synthetic.walk(synthetic.flannel_vxlan(synthetic.echo("10.244.1.2", "10.244.2.2")))
    assert not any(isinstance(item, Fold) for item in ladder(journey, lanes_of([journey], {})).items)


def test_connectors_stay_inside_the_lanes(synthetic: ModuleType) -> None:
    journey = synthetic.walk(synthetic.through_racks(synthetic.echo("10.244.1.2", "10.244.2.2")))
    one = ladder(journey, lanes_of([journey], {}))
    starts = [float(x) for x in re.findall(r'd="M([\d.]+) ', symbols([one]))]
    assert starts
    assert all(0 <= x <= one.lane_width * len(one.lanes) for x in starts)


def test_every_drawing_that_is_used_is_defined_once(synthetic: ModuleType) -> None:
    journey = synthetic.walk(synthetic.flannel_vxlan(synthetic.echo("10.244.1.2", "10.244.2.2")))
    one = ladder(journey, lanes_of([journey], {}))
    defined = re.findall(r'<symbol id="([^"]+)"', symbols([one, one]))
    assert sorted(defined) == sorted(set(defined))
    assert {symbol(item, one.lane_width) for item in one.items} == set(defined)
