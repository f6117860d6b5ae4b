//! Where nodes listen, and where the others look for them.
//!
//! As links of the host do: a node dials where it was told that the peer is, where it has met it,
//! and at addresses at which some peer or other is said to be. Whoever is dialled learns where the
//! other one listens. What a process has learned dies with it.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_runtime::NodeId;

/// See the module's header.
#[derive(Default)]
pub(super) struct Places {
    /// Nodes that have moved; the others are found wherever they are looked for.
    present: BTreeMap<NodeId, String>,
    told: BTreeMap<(NodeId, NodeId), String>,
    met: BTreeMap<(NodeId, NodeId), String>,
    sought: BTreeMap<NodeId, BTreeSet<String>>,
}

impl Places {
    /// The node's next start listens here, and looks for others there.
    pub(super) fn set(&mut self, node: NodeId, address: String, sought: BTreeSet<String>) {
        self.present.insert(node, address);
        self.sought.insert(node, sought);
    }

    /// A node is told where a peer is.
    pub(super) fn tell(&mut self, from: NodeId, to: NodeId, address: String) {
        self.told.insert((from, to), address);
    }

    /// The process of a node has ended.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.told.retain(|(from, _), _| *from != node);
        self.met.retain(|(from, _), _| *from != node);
    }

    /// Whether a node that dials a peer finds it.
    pub(super) fn finds(&self, from: NodeId, to: NodeId) -> bool {
        let Some(present) = self.present.get(&to) else {
            return true;
        };
        let known = [self.told.get(&(from, to)), self.met.get(&(from, to))];
        let seeks = self.sought.get(&from);
        known.contains(&Some(present)) || seeks.is_some_and(|sought| sought.contains(present))
    }

    /// Two nodes are connected.
    pub(super) fn meet(&mut self, one: NodeId, other: NodeId) {
        for (from, to) in [(one, other), (other, one)] {
            if let Some(present) = self.present.get(&to) {
                self.met.insert((from, to), present.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_has_moved_is_found_by_whom_it_dials_is_told_or_seeks_there() {
        let (a, b, c) = (NodeId(1), NodeId(2), NodeId(3));
        let mut places = Places::default();
        assert!(places.finds(a, b), "nobody has moved");
        places.set(b, "new".into(), BTreeSet::new());
        places.tell(a, b, "old".into());
        assert!(!places.finds(a, b) && places.finds(b, a));
        places.meet(b, a);
        assert!(places.finds(a, b) && !places.finds(c, b));
        places.forget(a);
        assert!(!places.finds(a, b));
        places.tell(a, b, "new".into());
        assert!(places.finds(a, b));
        places.set(c, "newer".into(), BTreeSet::from(["new".into()]));
        assert!(places.finds(c, b));
    }
}
