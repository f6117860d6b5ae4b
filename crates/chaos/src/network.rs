//! Where the nodes are, and what cuts them off.
//!
//! With the rights for it, every node has a network namespace of its own:
//!
//! ```text
//!   hosts (this process)          10.77.0.254 ─┐
//!   node 1 ── veth ── 10.77.0.1 ───────────────┤ bridge: what can be cut
//!   node 2 ── veth ── 10.77.0.2 ───────────────┘
//!   each also ─ veth ─ 10.77.1.x ── bridge: the API, never cut
//! ```
//!
//! A cut is silent and has a direction: the sender's neighbour table gets an address that nobody
//! has, so that its packets to that receiver reach the bridge and no one. All entries are
//! permanent, so nothing is ever asked for or learnt.
//!
//! Without the rights, nodes listen on loopback addresses of their own, and nothing can be cut.
//!
//! Promise: a namespace ends with the process that holds it open, and that ends with this one.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{sleep, timeout};

const DATA: [u8; 3] = [10, 77, 0];
const MANAGEMENT: [u8; 3] = [10, 77, 1];
const HOSTS_PART: u8 = 254;
/// An address of the same kind that no interface has.
const NOBODY: &str = "02:48:46:ff:ff:ff";
const IP_LIMIT: Duration = Duration::from_secs(20);

/// One end of what can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Party {
    Hosts,
    Node(usize),
}

/// A direction: from, to.
pub(crate) type Way = (Party, Party);

/// Both ways between two parties.
pub(crate) fn both(one: Party, other: Party) -> [Way; 2] {
    [(one, other), (other, one)]
}

/// What is cut at the moment, for those who have to know.
#[derive(Clone, Default)]
pub(crate) struct Cuts(Rc<RefCell<BTreeSet<Way>>>);

impl Cuts {
    /// Whether anything from one party to the other, or back, is lost.
    pub(crate) fn is_between(&self, one: Party, other: Party) -> bool {
        let cut = self.0.borrow();
        both(one, other).iter().any(|way| cut.contains(way))
    }
}

/// A process that does nothing but keep a namespace open.
struct Holder {
    pid: u32,
    _child: Child,
    /// It ends when this does.
    _lifeline: ChildStdin,
}

enum Kind {
    Namespaces(Vec<Holder>),
    Loopback { net: u8 },
}

/// See the module's header.
pub(crate) struct Network {
    kind: Kind,
    nodes: usize,
    cuts: Cuts,
}

impl Network {
    /// Needs a network namespace of its own, as [`crate::confine`] gives it.
    pub(crate) async fn with_namespaces(nodes: usize) -> anyhow::Result<Self> {
        let mut setup = String::from("link set dev lo up\n");
        for (bridge, net) in [("data", DATA), ("management", MANAGEMENT)] {
            setup += &format!("link add {bridge} type bridge\nlink set dev {bridge} up\n");
            setup += &format!("addr add {}/24 dev {bridge}\n", address(net, HOSTS_PART));
        }
        setup += &format!("link set dev data address {}\n", hardware(Party::Hosts));
        ip(None, &setup).await?;
        let mut holders = Vec::new();
        for node in 0..nodes {
            let holder = Holder::start().await?;
            let pid = holder.pid;
            let mut outside = String::new();
            let mut inside = String::from("link set dev lo up\n");
            for (name, bridge, net) in
                [("data", "data", DATA), ("manage", "management", MANAGEMENT)]
            {
                outside +=
                    &format!("link add {name}{node} type veth peer name {name} netns {pid}\n");
                outside += &format!("link set dev {name}{node} master {bridge}\n");
                outside += &format!("link set dev {name}{node} up\n");
                if name == "data" {
                    inside += &format!(
                        "link set dev data address {}\n",
                        hardware(Party::Node(node))
                    );
                }
                let own = address(net, node as u8 + 1);
                inside += &format!("addr add {own}/24 dev {name}\nlink set dev {name} up\n");
            }
            ip(None, &outside).await?;
            ip(Some(pid), &inside).await?;
            holders.push(holder);
        }
        let network = Self {
            kind: Kind::Namespaces(holders),
            nodes,
            cuts: Cuts::default(),
        };
        let ways = network.all_ways();
        network.set(&ways, false).await?;
        Ok(network)
    }

    /// Addresses only.
    pub(crate) fn with_loopback(nodes: usize) -> Self {
        // Another run on this machine most likely has another number.
        let net = (std::process::id() % 250 + 2) as u8;
        Self {
            kind: Kind::Loopback { net },
            nodes,
            cuts: Cuts::default(),
        }
    }

    pub(crate) fn can_cut(&self) -> bool {
        matches!(self.kind, Kind::Namespaces(_))
    }

    /// Where a node's links and portal are.
    pub(crate) fn address(&self, node: usize) -> IpAddr {
        let part = node as u8 + 1;
        match self.kind {
            Kind::Namespaces(_) => address(DATA, part),
            Kind::Loopback { net } => address([127, net, 0], part),
        }
    }

    /// Where a node's API is.
    pub(crate) fn api_address(&self, node: usize) -> IpAddr {
        match self.kind {
            Kind::Namespaces(_) => address(MANAGEMENT, node as u8 + 1),
            Kind::Loopback { .. } => self.address(node),
        }
    }

    /// A command that runs `program` where the node is, and that ends with this process.
    pub(crate) fn command(&self, node: usize, program: &std::path::Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Kind::Namespaces(holders) = &self.kind {
            let pid = holders[node].pid.to_string();
            command.args(["nsenter", "--net", "--target", &pid]);
        }
        command.arg(program);
        command
    }

    pub(crate) fn cuts(&self) -> Cuts {
        self.cuts.clone()
    }

    /// Cuts these ways, and makes all others whole.
    pub(crate) async fn cut_exactly(&self, wanted: &BTreeSet<Way>) -> anyhow::Result<()> {
        let before = self.cuts.0.replace(wanted.clone());
        let more: Vec<Way> = wanted.difference(&before).copied().collect();
        let fewer: Vec<Way> = before.difference(wanted).copied().collect();
        self.set(&more, true).await?;
        self.set(&fewer, false).await
    }

    /// All at once, one program for each sender.
    async fn set(&self, ways: &[Way], is_cut: bool) -> anyhow::Result<()> {
        let Kind::Namespaces(holders) = &self.kind else {
            ensure!(ways.is_empty(), "on loopback nothing can be cut");
            return Ok(());
        };
        let senders: BTreeSet<Party> = ways.iter().map(|(from, _)| *from).collect();
        let batches = senders.into_iter().map(|sender| {
            let (place, device) = match sender {
                Party::Hosts => (None, "data"),
                Party::Node(node) => (Some(holders[node].pid), "data"),
            };
            let own = ways.iter().filter(|(from, _)| *from == sender);
            let lines = own.map(|(_, to)| {
                let hardware = if is_cut {
                    NOBODY.to_owned()
                } else {
                    hardware(*to)
                };
                let to = address(DATA, part(*to));
                format!("neigh replace {to} lladdr {hardware} dev {device} nud permanent\n")
            });
            let lines: String = lines.collect();
            async move { ip(place, &lines).await }
        });
        futures::future::try_join_all(batches).await.map(drop)
    }

    fn all_ways(&self) -> Vec<Way> {
        let nodes = (0..self.nodes).map(Party::Node);
        let parties: Vec<Party> = nodes.chain([Party::Hosts]).collect();
        let ways = parties.iter().flat_map(|from| {
            let others = parties.iter().filter(move |to| *to != from);
            others.map(move |to| (*from, *to))
        });
        ways.collect()
    }
}

impl Holder {
    async fn start() -> anyhow::Result<Self> {
        let mut child = Command::new("unshare")
            .args(["--net", "--", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("starting unshare (util-linux)")?;
        let pid = child.id().context("a holder that has ended")?;
        let lifeline = child.stdin.take().context("a holder without input")?;
        // It has its namespace when it is not unshare any more.
        let is_there = async {
            while std::fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() != "cat" {
                sleep(Duration::from_millis(1)).await;
            }
            anyhow::Ok(())
        };
        timeout(IP_LIMIT, is_there).await.context("a namespace")??;
        Ok(Self {
            pid,
            _child: child,
            _lifeline: lifeline,
        })
    }
}

/// Runs lines of ip(8) in the namespace of a process, or here.
async fn ip(place: Option<u32>, lines: &str) -> anyhow::Result<()> {
    let mut command = match place {
        Some(pid) => {
            let mut command = Command::new("nsenter");
            command.args(["--net", "--target", &pid.to_string(), "ip"]);
            command
        }
        None => Command::new("ip"),
    };
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting ip (iproute2)")?;
    let mut input = child.stdin.take().context("ip without input")?;
    input.write_all(lines.as_bytes()).await?;
    drop(input);
    let ended = timeout(IP_LIMIT, child.wait_with_output())
        .await
        .context("ip hangs")??;
    if !ended.status.success() {
        bail!("ip: {}\n{lines}", String::from_utf8_lossy(&ended.stderr));
    }
    Ok(())
}

fn part(party: Party) -> u8 {
    match party {
        Party::Hosts => HOSTS_PART,
        Party::Node(node) => node as u8 + 1,
    }
}

fn address([a, b, c]: [u8; 3], part: u8) -> IpAddr {
    Ipv4Addr::new(a, b, c, part).into()
}

fn hardware(party: Party) -> String {
    format!("02:48:46:00:00:{:02x}", part(party))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_two_ways_and_loopback_addresses_differ() {
        let network = Network::with_loopback(5);
        assert_eq!(network.all_ways().len(), 6 * 5);
        let addresses: BTreeSet<IpAddr> = (0..5).map(|node| network.address(node)).collect();
        assert_eq!(addresses.len(), 5);
        assert!(addresses.iter().all(IpAddr::is_loopback));
        assert!(!network.can_cut());
    }
}
