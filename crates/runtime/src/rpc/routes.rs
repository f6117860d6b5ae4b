//! Which nodes reach which, and over whom a node is reached whose own link is down. Pure.
//!
//! Each start of a node states whom it has links to; the statements are flooded, and the newest
//! of each node counts. What must always hold:
//!
//! * a link counts between two other nodes only if both state it, and only between the starts
//!   that they name, so what a dead or silent node stated last proves nothing;
//! * a route is a list of nodes, each named once: it has no loop and an end;
//! * a node that nobody reachable has a link to is forgotten, so that what is kept here is
//!   bounded by the nodes that are there.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::links::{Incarnation, NodeId};

/// Nodes on a way, the target included: longer ways than any cluster has are refused.
pub(super) const HOPS_MAX: usize = 32;

/// What one start of a node states about its links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
    /// Grows with each change; the larger of one start is the newer.
    pub(super) sequence: u64,
    /// Whom it has links to, with the start of each.
    pub(super) peers: BTreeMap<NodeId, Incarnation>,
}

impl Statement {
    fn age(&self) -> (Incarnation, u64) {
        (self.incarnation, self.sequence)
    }
}

/// What came of a statement that somebody passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Learned {
    /// It is the newest, and others should hear it.
    News,
    /// It was known.
    Known,
    /// A newer one is known, which the sender should hear.
    Outdated(Statement),
}

/// How a frame gets to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Over the link to it.
    Direct,
    /// Over these nodes, the last of which is the target in this start.
    Over(Vec<NodeId>, Incarnation),
}

/// See the module's header.
#[derive(Debug)]
pub(super) struct Routes {
    own: Statement,
    others: BTreeMap<NodeId, Statement>,
}

impl Routes {
    /// Of a node that has no links yet.
    pub(super) fn new(node: NodeId, incarnation: Incarnation) -> Self {
        let own = Statement {
            node,
            incarnation,
            ..Statement::default()
        };
        Self {
            own,
            others: BTreeMap::new(),
        }
    }

    /// The local link to a peer came up to this start of it, or is down.
    pub(super) fn set_link(&mut self, peer: NodeId, incarnation: Option<Incarnation>) {
        match incarnation {
            Some(incarnation) => self.own.peers.insert(peer, incarnation),
            None => self.own.peers.remove(&peer),
        };
        self.own.sequence += 1;
        self.forget_unreachable();
    }

    /// Takes in what somebody stated.
    pub(super) fn learn(&mut self, statement: Statement) -> Learned {
        if statement.node == self.own.node {
            return if statement.age() < self.own.age() {
                Learned::Outdated(self.own.clone())
            } else {
                Learned::Known
            };
        }
        if let Some(known) = self.others.get(&statement.node) {
            if known.age() > statement.age() {
                return Learned::Outdated(known.clone());
            }
            if known.age() == statement.age() {
                return Learned::Known;
            }
        }
        let node = statement.node;
        self.others.insert(node, statement);
        self.forget_unreachable();
        if self.others.contains_key(&node) {
            Learned::News
        } else {
            Learned::Known
        }
    }

    /// This node's own statement.
    pub(super) fn own(&self) -> &Statement {
        &self.own
    }

    /// The newest statement of a node.
    pub(super) fn of(&self, node: NodeId) -> Option<&Statement> {
        if node == self.own.node {
            return Some(&self.own);
        }
        self.others.get(&node)
    }

    /// All statements, this node's own first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Statement> {
        std::iter::once(&self.own).chain(self.others.values())
    }

    /// How a frame gets to `target`; `None` if it does not.
    pub(super) fn way(&self, target: NodeId) -> Option<Way> {
        let linked = self.own.peers.get(&target);
        if linked.is_some() && !self.is_half_open(target) {
            return Some(Way::Direct);
        }
        if let Some((path, incarnation)) = self.path(target) {
            return Some(Way::Over(path, incarnation));
        }
        linked.map(|_| Way::Direct)
    }

    /// Whether a way that was chosen before still leads to its target.
    pub(super) fn still_leads(&self, target: NodeId, way: &Way) -> bool {
        match way {
            Way::Direct => self.own.peers.contains_key(&target) && !self.is_half_open(target),
            Way::Over(path, incarnation) => {
                let mut from = self.own.node;
                let connected = path.iter().all(|to| {
                    let linked = self.linked(from, *to);
                    from = *to;
                    linked.is_some()
                });
                connected && self.start_of(target) == Some(*incarnation)
            }
        }
    }

    /// The nodes that this one reaches over whatever way, itself included, with their starts.
    pub(super) fn reachable(&self) -> BTreeMap<NodeId, Incarnation> {
        let mut reached = BTreeMap::from([(self.own.node, self.own.incarnation)]);
        let mut next = VecDeque::from([self.own.node]);
        while let Some(from) = next.pop_front() {
            for (to, incarnation) in self.links_of(from) {
                if let Entry::Vacant(entry) = reached.entry(to) {
                    entry.insert(incarnation);
                    next.push_back(to);
                }
            }
        }
        reached
    }

    /// Pairs of reachable nodes, the lower number first, that have no link to one another.
    pub(super) fn missing_links(&self) -> BTreeSet<(NodeId, NodeId)> {
        let reached: Vec<NodeId> = self.reachable().into_keys().collect();
        let mut missing = BTreeSet::new();
        for (at, one) in reached.iter().enumerate() {
            for other in &reached[at + 1..] {
                if self.linked(*one, *other).is_none() {
                    missing.insert((*one, *other));
                }
            }
        }
        missing
    }

    /// The peer has hung up, as it states, and this side has not noticed yet. A link that has
    /// just come up looks the same until the peer's next statement is here.
    fn is_half_open(&self, peer: NodeId) -> bool {
        let Some(incarnation) = self.own.peers.get(&peer) else {
            return false;
        };
        self.others.get(&peer).is_some_and(|stated| {
            stated.incarnation == *incarnation
                && stated.peers.get(&self.own.node) != Some(&self.own.incarnation)
        })
    }

    /// The links that start at a node and count, with the starts they lead to.
    fn links_of(&self, from: NodeId) -> Vec<(NodeId, Incarnation)> {
        let Some(statement) = self.of(from) else {
            return Vec::new();
        };
        let peers = statement.peers.keys();
        peers
            .filter_map(|to| Some((*to, self.linked(from, *to)?)))
            .collect()
    }

    /// The start of `to` if there is a link between the two.
    fn linked(&self, from: NodeId, to: NodeId) -> Option<Incarnation> {
        let incarnation = *self.of(from)?.peers.get(&to)?;
        if from == self.own.node && !self.is_half_open(to) {
            return Some(incarnation);
        }
        let (one, other) = (self.of(from)?, self.of(to)?);
        let mutual =
            other.incarnation == incarnation && other.peers.get(&from) == Some(&one.incarnation);
        mutual.then_some(incarnation)
    }

    fn start_of(&self, node: NodeId) -> Option<Incarnation> {
        let stated = self.of(node).map(|statement| statement.incarnation);
        self.own.peers.get(&node).copied().max(stated)
    }

    /// The shortest way over other nodes.
    fn path(&self, target: NodeId) -> Option<(Vec<NodeId>, Incarnation)> {
        let mut before: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        let mut next = VecDeque::from([self.own.node]);
        while let Some(from) = next.pop_front() {
            for (to, incarnation) in self.links_of(from) {
                if to == self.own.node || before.contains_key(&to) {
                    continue;
                }
                before.insert(to, from);
                if to != target {
                    next.push_back(to);
                    continue;
                }
                let mut path = vec![target];
                let mut at = from;
                while at != self.own.node {
                    path.push(at);
                    at = before[&at];
                }
                path.reverse();
                return (path.len() <= HOPS_MAX).then_some((path, incarnation));
            }
        }
        None
    }

    fn forget_unreachable(&mut self) {
        let stated: BTreeSet<NodeId> = self.reachable().into_keys().collect();
        // Also whom a reachable node names: its own statement may be on its way.
        let named: BTreeSet<NodeId> = stated
            .iter()
            .filter_map(|node| self.of(*node))
            .flat_map(|statement| statement.peers.keys().copied())
            .collect();
        self.others
            .retain(|node, _| stated.contains(node) || named.contains(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: NodeId = NodeId(1);

    fn statement(node: u64, incarnation: u64, sequence: u64, peers: &[u64]) -> Statement {
        Statement {
            node: NodeId(node),
            incarnation: Incarnation(incarnation),
            sequence,
            peers: peers
                .iter()
                .map(|peer| (NodeId(*peer), Incarnation(1)))
                .collect(),
        }
    }

    /// Node 1 with links to `linked`, and what the others state.
    fn routes(linked: &[u64], others: &[(u64, &[u64])]) -> Routes {
        let mut routes = Routes::new(LOCAL, Incarnation(1));
        for peer in linked {
            routes.set_link(NodeId(*peer), Some(Incarnation(1)));
        }
        // Twice: in the first turn, what leads to a node may not be known yet.
        for turn in 1..=2 {
            for (node, peers) in others {
                routes.learn(statement(*node, 1, turn, peers));
            }
        }
        routes
    }

    fn over(path: &[u64]) -> Option<Way> {
        let path = path.iter().copied().map(NodeId).collect();
        Some(Way::Over(path, Incarnation(1)))
    }

    fn nodes(routes: &Routes) -> Vec<u64> {
        routes.reachable().keys().map(|node| node.0).collect()
    }

    #[test]
    fn a_link_is_the_way_and_without_one_others_are() {
        let routes = routes(&[2, 3], &[(2, &[1, 3, 4]), (3, &[1, 2]), (4, &[2])]);
        assert_eq!(routes.way(NodeId(2)), Some(Way::Direct));
        assert_eq!(routes.way(NodeId(4)), over(&[2, 4]));
        assert_eq!(routes.way(NodeId(9)), None);
    }

    #[test]
    fn a_chain_is_followed_to_its_end() {
        let routes = routes(&[2], &[(2, &[1, 3]), (3, &[2, 4]), (4, &[3, 5]), (5, &[4])]);
        assert_eq!(routes.way(NodeId(5)), over(&[2, 3, 4, 5]));
        assert_eq!(nodes(&routes), [1, 2, 3, 4, 5]);
        assert_eq!(routes.missing_links().len(), 6);
    }

    #[test]
    fn what_only_one_side_states_is_no_link() {
        // Node 4 fell silent: it still names everybody, and nobody names it.
        let routes = routes(&[2, 3], &[(2, &[1, 3]), (3, &[1, 2]), (4, &[1, 2, 3])]);
        assert_eq!(routes.way(NodeId(4)), None);
        assert_eq!(nodes(&routes), [1, 2, 3]);
    }

    #[test]
    fn a_link_to_an_earlier_start_is_none_to_the_present_one() {
        let mut routes = routes(&[2], &[(2, &[1, 3]), (3, &[2])]);
        assert_eq!(routes.way(NodeId(3)), over(&[2, 3]));
        assert_eq!(routes.learn(statement(3, 2, 1, &[2])), Learned::News);
        assert_eq!(routes.way(NodeId(3)), None, "node 2 names start 1");
    }

    #[test]
    fn the_newest_statement_counts_and_an_older_one_is_answered() {
        let mut routes = routes(&[2], &[(2, &[1, 3])]);
        let newest = statement(2, 1, 5, &[1]);
        assert_eq!(routes.learn(newest.clone()), Learned::News);
        assert_eq!(routes.learn(newest.clone()), Learned::Known);
        let older = statement(2, 1, 4, &[1, 3]);
        assert_eq!(routes.learn(older), Learned::Outdated(newest));
        let own = statement(1, 1, 0, &[]);
        assert_eq!(routes.learn(own), Learned::Outdated(routes.own().clone()));
    }

    #[test]
    fn a_link_that_the_peer_has_given_up_is_gone_round() {
        let mut routes = routes(&[2, 3], &[(2, &[1, 3]), (3, &[1, 2])]);
        routes.learn(statement(2, 1, 9, &[3]));
        assert_eq!(routes.way(NodeId(2)), over(&[3, 2]));
        assert!(!routes.still_leads(NodeId(2), &Way::Direct));
        // Without another way it is tried all the same.
        routes.set_link(NodeId(3), None);
        assert_eq!(routes.way(NodeId(2)), Some(Way::Direct));
    }

    #[test]
    fn a_way_leads_no_more_once_one_of_its_links_is_gone() {
        let mut routes = routes(&[2, 3], &[(2, &[1, 3, 4]), (3, &[1, 2, 4]), (4, &[2, 3])]);
        let way = routes.way(NodeId(4)).expect("over 2");
        assert!(routes.still_leads(NodeId(4), &way));
        routes.learn(statement(2, 1, 9, &[1, 3]));
        assert!(!routes.still_leads(NodeId(4), &way));
        assert_eq!(routes.way(NodeId(4)), over(&[3, 4]));
    }

    #[test]
    fn a_node_that_nobody_has_a_link_to_is_forgotten() {
        let mut routes = routes(&[2, 3], &[(2, &[1, 3, 4]), (3, &[1, 2]), (4, &[2])]);
        assert!(routes.of(NodeId(4)).is_some());
        routes.learn(statement(2, 1, 9, &[1, 3]));
        assert!(routes.of(NodeId(4)).is_none());
        assert_eq!(routes.learn(statement(4, 1, 3, &[2])), Learned::Known);
        assert!(routes.of(NodeId(4)).is_none());
    }
}
