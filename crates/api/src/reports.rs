//! What a node says of itself, for its own API and for other nodes.
//!
//! A report's size is bounded, whatever the node owns: volumes with I/O under way and copies that
//! are brought back are listed up to a bound, and counted beyond it.

use std::time::Duration;

use holdfast_node::{Fullness, Node, NodeReport};
use holdfast_runtime::host::HostLinks;
use holdfast_volume::{OwnerStatus, ResyncStatus};
use holdfast_wire::VolumeId;
use holdfast_wire::status as wire;

use crate::service;
use crate::types::{
    DrainShare, Integrity, LinkStatus, OldestIo, OwnerReport, Resync, ScrubPass, SelfReport,
    SpaceLevel, Stalls, StoreUsage, Wait,
};

/// Bytes of a block, in which resyncs count.
const BLOCK_BYTES: u64 = 4096;
/// Volumes of which a report says for how long their initiators wait.
const OLDEST_IO_MAX: usize = 1000;
/// Resyncs that an owner lists.
const RESYNCS_MAX: usize = 64;

/// What this node knows of itself alone; with what its copies take only if `copies` says so: that
/// costs a look-up for each used slice.
pub(crate) fn own_report(node: &Node, links: &HostLinks, copies: bool) -> SelfReport {
    let report = node.report();
    let stalls = node.context().runtime.stalls();
    SelfReport {
        id: report.node.0,
        incarnation: node.context().incarnation().0,
        registered: report.registered,
        usage: StoreUsage {
            home_bytes: report.usage.home_bytes,
            home_used_bytes: report.usage.home_used_bytes,
            home_reclaimable_bytes: report.usage.home_reclaimable_bytes,
            home_map_bytes: report.usage.home_map_bytes,
            home_free_bytes: report.usage.home_free_bytes,
            home_collected_bytes: report.usage.home_collected_bytes,
            journal_bytes: report.usage.journal_bytes,
            journal_used_bytes: report.usage.journal_used_bytes,
        },
        integrity: integrity(&report),
        space: match report.fullness {
            Fullness::Enough => SpaceLevel::Enough,
            Fullness::Low => SpaceLevel::Low,
            Fullness::Critical => SpaceLevel::Critical,
        },
        owned: report.owned,
        serving: report.serving,
        links: links
            .status()
            .into_iter()
            .map(|status| LinkStatus {
                node: status.peer.0,
                up: status.up.is_some(),
                problem: match status.up {
                    Some(_) => None,
                    None => status.problem.map(|problem| problem.to_string()),
                },
            })
            .collect(),
        oldest_io: oldest_io(&report.oldest_io),
        stalls: Stalls {
            longest_us: stalls.longest.as_micros() as u64,
            longest_in: stalls.longest_in.to_owned(),
            count: stalls.count,
            measured_ms: stalls.measured.as_millis() as u64,
        },
        copies_bytes: copies.then(|| node.copies_bytes()),
        drains: (node.drain_work().into_iter())
            .map(|work| DrainShare {
                node: work.node.0,
                copied_bytes: work.copied_bytes,
                unfinished_bytes: work.unfinished_bytes,
                bytes_per_s: work.bytes_per_s,
            })
            .collect(),
    }
}

fn oldest_io(all: &[(VolumeId, Duration)]) -> Vec<OldestIo> {
    let mut oldest: Vec<OldestIo> = all
        .iter()
        .map(|(volume, age)| OldestIo {
            volume: volume.0,
            age_ms: age.as_millis() as u64,
        })
        .collect();
    oldest.sort_by_key(|oldest| (std::cmp::Reverse(oldest.age_ms), oldest.volume));
    oldest.truncate(OLDEST_IO_MAX);
    oldest
}

fn integrity(report: &NodeReport) -> Integrity {
    let pass = |pass: holdfast_node::ScrubPass| ScrubPass {
        begun_unix_ms: pass.begun_unix_ms,
        ended_unix_ms: Some(pass.ended_unix_ms).filter(|ended| *ended > 0),
        bytes: pass.bytes,
        damaged_blocks: pass.damaged_blocks,
    };
    Integrity {
        damaged: report.damaged,
        damaged_blocks: report.damaged_blocks,
        lost_blocks: report.lost_blocks,
        healed_blocks: report.healed_blocks,
        scrub_paused: report.scrub.paused,
        scrub: report.scrub.current.map(pass),
        last_scrub: report.scrub.last.map(pass),
    }
}

/// What this node does as a volume's owner.
pub(crate) fn owner_report(node: &Node, status: &OwnerStatus) -> OwnerReport {
    let now = node.context().runtime.now();
    let waiting = status.waits_for.as_ref();
    let finished = status.resyncs.iter().filter(|one| one.finished).count();
    OwnerReport {
        volume: status.volume.0,
        view: status.view.0,
        open: status.open,
        waits_for: waiting.map_or_else(String::new, service::wait_text),
        waiting: waiting.map(|waiting| service::wait(waiting, now)),
        age_ms: status.age.as_millis() as u64,
        takeover_ms: status.takeover.map(|time| time.as_millis() as u64),
        resyncs: resyncs(&status.resyncs),
        resyncs_under_way: (status.resyncs.len() - finished) as u64,
        resyncs_finished: finished as u64,
        resynced_bytes: copied_bytes(status.resyncs.iter().map(|resync| resync.blocks)),
    }
}

fn resyncs(all: &[ResyncStatus]) -> Vec<Resync> {
    let under_way = all.iter().filter(|resync| !resync.finished);
    let finished = all.iter().filter(|resync| resync.finished);
    let listed = under_way.chain(finished).take(RESYNCS_MAX);
    listed
        .map(|status| Resync {
            slice: status.slice,
            node: status.node.0,
            copied_bytes: copied_bytes([status.blocks]),
            finished: status.finished,
        })
        .collect()
}

fn copied_bytes(blocks: impl IntoIterator<Item = u64>) -> u64 {
    blocks.into_iter().sum::<u64>() * BLOCK_BYTES
}

/// A report for other nodes.
pub(crate) fn to_wire(report: SelfReport) -> wire::NodeSummary {
    let StoreUsage {
        home_bytes,
        home_used_bytes,
        home_reclaimable_bytes,
        home_map_bytes,
        home_free_bytes,
        home_collected_bytes,
        journal_bytes,
        journal_used_bytes,
    } = report.usage;
    let pass = |pass: ScrubPass| wire::ScrubPass {
        begun_unix_ms: pass.begun_unix_ms,
        ended_unix_ms: pass.ended_unix_ms,
        bytes: pass.bytes,
        damaged_blocks: pass.damaged_blocks,
    };
    let integrity = report.integrity;
    wire::NodeSummary {
        node: report.id,
        incarnation: report.incarnation,
        registered: report.registered,
        usage: Some(wire::StoreUsage {
            home: home_bytes,
            home_used: home_used_bytes,
            home_reclaimable: home_reclaimable_bytes,
            home_map: home_map_bytes,
            home_free: home_free_bytes,
            home_collected: home_collected_bytes,
            journal: journal_bytes,
            journal_used: journal_used_bytes,
        }),
        integrity: Some(wire::Integrity {
            damaged: integrity.damaged,
            damaged_blocks: integrity.damaged_blocks,
            lost_blocks: integrity.lost_blocks,
            healed_blocks: integrity.healed_blocks,
            scrub_paused: integrity.scrub_paused,
            scrub: integrity.scrub.map(pass),
            last_scrub: integrity.last_scrub.map(pass),
        }),
        space: match report.space {
            SpaceLevel::Enough => 0,
            SpaceLevel::Low => 1,
            SpaceLevel::Critical => 2,
        },
        links: (report.links.into_iter())
            .map(|LinkStatus { node, up, problem }| wire::LinkStatus { node, up, problem })
            .collect(),
        oldest_io: (report.oldest_io.into_iter())
            .map(|OldestIo { volume, age_ms }| wire::OldestIo { volume, age_ms })
            .collect(),
        owned: report.owned,
        serving: report.serving,
        stalls: Some(wire::Stalls {
            longest_us: report.stalls.longest_us,
            longest_in: report.stalls.longest_in,
            count: report.stalls.count,
            measured_ms: report.stalls.measured_ms,
        }),
        copies_bytes: report.copies_bytes,
        drains: (report.drains.into_iter())
            .map(|share| wire::DrainShare {
                node: share.node,
                copied_bytes: share.copied_bytes,
                unfinished_bytes: share.unfinished_bytes,
                bytes_per_s: share.bytes_per_s,
            })
            .collect(),
    }
}

/// Another node's report. A part that it left out counts as nothing.
pub(crate) fn from_wire(summary: wire::NodeSummary) -> SelfReport {
    let usage = summary.usage.unwrap_or_default();
    let integrity = summary.integrity.unwrap_or_default();
    let stalls = summary.stalls.unwrap_or_default();
    let pass = |pass: wire::ScrubPass| ScrubPass {
        begun_unix_ms: pass.begun_unix_ms,
        ended_unix_ms: pass.ended_unix_ms,
        bytes: pass.bytes,
        damaged_blocks: pass.damaged_blocks,
    };
    SelfReport {
        id: summary.node,
        incarnation: summary.incarnation,
        registered: summary.registered,
        usage: StoreUsage {
            home_bytes: usage.home,
            home_used_bytes: usage.home_used,
            home_reclaimable_bytes: usage.home_reclaimable,
            home_map_bytes: usage.home_map,
            home_free_bytes: usage.home_free,
            home_collected_bytes: usage.home_collected,
            journal_bytes: usage.journal,
            journal_used_bytes: usage.journal_used,
        },
        integrity: Integrity {
            damaged: integrity.damaged,
            damaged_blocks: integrity.damaged_blocks,
            lost_blocks: integrity.lost_blocks,
            healed_blocks: integrity.healed_blocks,
            scrub_paused: integrity.scrub_paused,
            scrub: integrity.scrub.map(pass),
            last_scrub: integrity.last_scrub.map(pass),
        },
        space: match summary.space {
            0 => SpaceLevel::Enough,
            1 => SpaceLevel::Low,
            // A level that a newer version adds is beyond those that are known.
            _ => SpaceLevel::Critical,
        },
        owned: summary.owned,
        serving: summary.serving,
        links: (summary.links.into_iter())
            .map(|wire::LinkStatus { node, up, problem }| LinkStatus { node, up, problem })
            .collect(),
        oldest_io: (summary.oldest_io.into_iter())
            .map(|wire::OldestIo { volume, age_ms }| OldestIo { volume, age_ms })
            .collect(),
        stalls: Stalls {
            longest_us: stalls.longest_us,
            longest_in: stalls.longest_in,
            count: stalls.count,
            measured_ms: stalls.measured_ms,
        },
        copies_bytes: summary.copies_bytes,
        drains: (summary.drains.into_iter())
            .map(|share| DrainShare {
                node: share.node,
                copied_bytes: share.copied_bytes,
                unfinished_bytes: share.unfinished_bytes,
                bytes_per_s: share.bytes_per_s,
            })
            .collect(),
    }
}

/// An owner's report for other nodes.
pub(crate) fn owner_to_wire(report: OwnerReport) -> wire::OwnerStatus {
    let waiting = report.waiting.as_ref();
    wire::OwnerStatus {
        volume: report.volume,
        view: report.view,
        open: report.open,
        waiting: waiting.map(|waiting| wire::Waiting {
            text: report.waits_for.clone(),
            kind: waiting.kind.word(),
            nodes: waiting.nodes.clone(),
            for_ms: waiting.for_ms,
        }),
        age_ms: report.age_ms,
        takeover_ms: report.takeover_ms,
        resyncs: (report.resyncs.iter())
            .map(|resync| wire::Resync {
                slice: resync.slice,
                node: resync.node,
                copied_bytes: resync.copied_bytes,
                finished: resync.finished,
            })
            .collect(),
        resyncs_under_way: report.resyncs_under_way,
        resyncs_finished: report.resyncs_finished,
        resynced_bytes: report.resynced_bytes,
    }
}

/// Another node's report as an owner.
pub(crate) fn owner_from_wire(status: wire::OwnerStatus) -> OwnerReport {
    let (waits_for, waiting) = match status.waiting {
        None => (String::new(), None),
        Some(waiting) => {
            let kind = crate::types::WaitKind::from_word(&waiting.kind);
            let wait = kind.map(|kind| Wait {
                kind,
                nodes: waiting.nodes,
                for_ms: waiting.for_ms,
            });
            (waiting.text, wait)
        }
    };
    OwnerReport {
        volume: status.volume,
        view: status.view,
        open: status.open,
        waits_for,
        waiting,
        age_ms: status.age_ms,
        takeover_ms: status.takeover_ms,
        resyncs: (status.resyncs.iter())
            .map(|resync| Resync {
                slice: resync.slice,
                node: resync.node,
                copied_bytes: resync.copied_bytes,
                finished: resync.finished,
            })
            .collect(),
        resyncs_under_way: status.resyncs_under_way,
        resyncs_finished: status.resyncs_finished,
        resynced_bytes: status.resynced_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::WaitKind;

    #[test]
    fn a_report_is_the_same_after_it_has_travelled() {
        let pass = ScrubPass {
            begun_unix_ms: 1,
            ended_unix_ms: Some(2),
            bytes: 3,
            damaged_blocks: 4,
        };
        let report = SelfReport {
            id: 3,
            incarnation: 9,
            registered: true,
            usage: StoreUsage {
                home_bytes: 1,
                home_used_bytes: 2,
                home_reclaimable_bytes: 3,
                home_map_bytes: 4,
                home_free_bytes: 5,
                home_collected_bytes: 6,
                journal_bytes: 7,
                journal_used_bytes: 8,
            },
            integrity: Integrity {
                damaged: true,
                damaged_blocks: 5,
                lost_blocks: 4,
                healed_blocks: 3,
                scrub_paused: true,
                scrub: None,
                last_scrub: Some(pass),
            },
            space: SpaceLevel::Critical,
            owned: 20,
            serving: 19,
            links: vec![LinkStatus {
                node: 1,
                up: false,
                problem: Some("refused".into()),
            }],
            oldest_io: vec![OldestIo {
                volume: 4,
                age_ms: 17,
            }],
            stalls: Stalls {
                longest_us: 31_000,
                longest_in: "node-follow".into(),
                count: 2,
                measured_ms: 60_000,
            },
            copies_bytes: Some(21),
            drains: vec![DrainShare {
                node: 4,
                copied_bytes: 22,
                unfinished_bytes: 23,
                bytes_per_s: Some(24),
            }],
        };
        assert_eq!(from_wire(to_wire(report.clone())), report);
        let owner = OwnerReport {
            volume: 4,
            view: 5,
            open: true,
            waits_for: "leases from copies on node 1".into(),
            waiting: Some(Wait {
                kind: WaitKind::CopyUnderRepair,
                nodes: vec![1],
                for_ms: 3,
            }),
            age_ms: 6,
            takeover_ms: Some(7),
            resyncs: vec![Resync {
                slice: 2,
                node: 1,
                copied_bytes: 8192,
                finished: false,
            }],
            resyncs_under_way: 1,
            resyncs_finished: 100,
            resynced_bytes: 1 << 30,
        };
        assert_eq!(owner_from_wire(owner_to_wire(owner.clone())), owner);
    }

    #[test]
    fn the_longest_waits_and_the_resyncs_under_way_are_listed_and_others_counted() {
        let all: Vec<(VolumeId, Duration)> = (0..3000)
            .map(|number| (VolumeId(number), Duration::from_millis(number % 1500)))
            .collect();
        let listed = oldest_io(&all);
        assert_eq!(listed.len(), OLDEST_IO_MAX);
        assert_eq!((listed[0].age_ms, listed[999].age_ms), (1499, 1000));
        let resync = |slice| ResyncStatus {
            slice,
            node: holdfast_runtime::NodeId(1),
            base: holdfast_wire::Seq(0),
            blocks: 1,
            finished: slice < 100,
        };
        let all: Vec<ResyncStatus> = (0..110).map(resync).collect();
        let listed = resyncs(&all);
        assert_eq!(listed.len(), RESYNCS_MAX);
        assert!(listed[..10].iter().all(|one| !one.finished));
        assert!(listed[10..].iter().all(|one| one.finished));
    }

    #[test]
    fn a_wait_of_a_kind_that_is_not_known_keeps_its_words() {
        let status = wire::OwnerStatus {
            waiting: Some(wire::Waiting {
                text: "the moon".into(),
                kind: "moon".into(),
                nodes: vec![],
                for_ms: 1,
            }),
            ..wire::OwnerStatus::default()
        };
        let report = owner_from_wire(status);
        assert_eq!(
            (report.waits_for.as_str(), report.waiting),
            ("the moon", None)
        );
    }
}
