//! What an idle cluster costs, measured from outside: processor time and memory of five nodes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::cluster::ServedDemo;
use crate::process::release_binary;
use crate::processes::{ClockTick, Usage, usage};

/// What founding the cluster left to do is over by then: leases, destaging, first gossip.
const SETTLE: Duration = Duration::from_secs(10);
const MIB: f64 = (1 << 20) as f64;

/// Watches a served demo without load for so many seconds.
pub(crate) fn run(seconds: u64, cpu_percent_max: Option<f64>) -> anyhow::Result<()> {
    let demo = ServedDemo::start(&release_binary()?)?;
    let mut named: Vec<(String, u32)> = (1..)
        .zip(demo.nodes())
        .map(|(number, node)| (format!("node process {number}"), node.pid))
        .collect();
    let nodes = named.len();
    if nodes != demo.ready.portals.len() {
        bail!(
            "{nodes} node processes, {} portals",
            demo.ready.portals.len()
        );
    }
    named.push(("supervisor".to_owned(), demo.supervisor()));
    println!(
        "{nodes} nodes serve; settling {} s, then watching {seconds} s",
        SETTLE.as_secs()
    );
    thread::sleep(SETTLE);

    let clock = ClockTick::of_this_machine();
    let snapshot = || -> anyhow::Result<Vec<Usage>> {
        let usages = named.iter().map(|(name, pid)| {
            usage(*pid, clock).with_context(|| format!("{name} (process {pid}) has ended"))
        });
        usages.collect()
    };
    let (begin, before) = (Instant::now(), snapshot()?);
    thread::sleep(Duration::from_secs(seconds));
    let (elapsed, after) = (begin.elapsed(), snapshot()?);

    println!("\n{:<18} {:>12} {:>12}", "process", "% of a core", "MiB");
    let mut percent_of_nodes = 0.0;
    let mut bytes_of_nodes = 0;
    for (index, ((name, _), (before, after))) in
        named.iter().zip(before.iter().zip(&after)).enumerate()
    {
        let percent = percent(before.processor, after.processor, elapsed);
        let mib = after.resident_bytes as f64 / MIB;
        println!("{name:<18} {percent:>12.3} {mib:>12.1}");
        if index < nodes {
            percent_of_nodes += percent;
            bytes_of_nodes += after.resident_bytes;
        }
    }
    let mib = bytes_of_nodes as f64 / MIB;
    println!("{:<18} {percent_of_nodes:>12.3} {mib:>12.1}", "all nodes");
    match cpu_percent_max {
        Some(most) if percent_of_nodes > most => {
            bail!(
                "idle nodes use {percent_of_nodes:.3} % of a core; at most {most} % was asked for"
            )
        }
        Some(_) | None => Ok(()),
    }
}

fn percent(before: Duration, after: Duration, elapsed: Duration) -> f64 {
    100.0 * after.saturating_sub(before).as_secs_f64() / elapsed.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_is_of_one_core() {
        let seconds = Duration::from_secs;
        assert!((percent(seconds(1), seconds(3), seconds(8)) - 25.0).abs() < 1e-9);
    }
}
