//! What nodes publish about themselves: scuttlebutt reconciliation (PROTOCOLS 3.2).
//!
//! Invariants of a [`Directory`]:
//!
//! * only its origin writes an origin's map; each write takes the origin's next version;
//! * (incarnation, version) of an origin describes a prefix of its writes: what is newer is
//!   absent, what is older is present or was overwritten by something present. So a delta is
//!   applied only if it starts at or below the version held, and in version order;
//! * a larger incarnation replaces the whole map, even by an empty one.
//!
//! An exchange is push-pull in three messages: digest; deltas and digest; deltas. Keys are never
//! removed within an incarnation, so there are no tombstones.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_runtime::{Incarnation, NodeId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::core::Member;

/// Largest key, in bytes.
pub const KEY_BYTES_MAX: usize = 64;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1024;
/// Most keys of one node.
pub const KEYS_MAX: usize = 64;

/// Keys and values in one message; what does not fit follows in the next exchange.
const DELTA_BYTES_MAX: usize = 32 << 10;
/// Bytes that an entry takes beside its key and value, at most.
const ENTRY_OVERHEAD_BYTES: usize = 16;

const _: () = assert!(KEY_BYTES_MAX + VALUE_BYTES_MAX + ENTRY_OVERHEAD_BYTES <= DELTA_BYTES_MAX);

/// Why a value was not published. Nothing changed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PublishError {
    /// The key is longer than [`KEY_BYTES_MAX`].
    #[error("the key has {0} bytes, more than {KEY_BYTES_MAX}")]
    KeyTooLong(usize),
    /// The value is longer than [`VALUE_BYTES_MAX`].
    #[error("the value has {0} bytes, more than {VALUE_BYTES_MAX}")]
    ValueTooLong(usize),
    /// The node has [`KEYS_MAX`] other keys already.
    #[error("the node publishes {KEYS_MAX} keys already")]
    TooManyKeys,
}

/// What one node published, as known here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The start of the node that published it.
    pub incarnation: Incarnation,
    /// Its values by key.
    pub values: BTreeMap<String, Bytes>,
}

/// A message of an exchange; its postcard form is the wire form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// What the sender holds.
    Digest(Vec<Held>),
    /// What the receiver lacks, and what the sender holds.
    Answer(Vec<Delta>, Vec<Held>),
    /// What the receiver lacks.
    Deltas(Vec<Delta>),
}

/// How much of an origin's writes a node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    node: NodeId,
    incarnation: Incarnation,
    version: u64,
}

/// All that an origin wrote after a version and did not overwrite since, up to some version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delta {
    node: NodeId,
    incarnation: Incarnation,
    after: u64,
    writes: Vec<Write>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Write {
    version: u64,
    key: String,
    value: Vec<u8>,
}

#[derive(Debug, Default)]
struct Origin {
    incarnation: Incarnation,
    version: u64,
    entries: BTreeMap<String, (u64, Bytes)>,
}

/// The maps of all peers and of this node.
pub(crate) struct Directory {
    local: NodeId,
    origins: BTreeMap<NodeId, Origin>,
}

impl Directory {
    pub(crate) fn new(local: Member) -> Self {
        let origin = Origin {
            incarnation: local.incarnation,
            ..Origin::default()
        };
        Self {
            local: local.node,
            origins: BTreeMap::from([(local.node, origin)]),
        }
    }

    /// Writes a value of this node; writing what is there already is free.
    pub(crate) fn publish(&mut self, key: &str, value: Bytes) -> Result<(), PublishError> {
        if key.len() > KEY_BYTES_MAX {
            return Err(PublishError::KeyTooLong(key.len()));
        }
        if value.len() > VALUE_BYTES_MAX {
            return Err(PublishError::ValueTooLong(value.len()));
        }
        let origin = self.origins.entry(self.local).or_default();
        let before = origin.entries.get(key);
        if before.is_some_and(|(_, before)| *before == value) {
            return Ok(());
        }
        if before.is_none() && origin.entries.len() == KEYS_MAX {
            return Err(PublishError::TooManyKeys);
        }
        origin.version += 1;
        origin
            .entries
            .insert(key.to_owned(), (origin.version, value));
        Ok(())
    }

    pub(crate) fn read(&self, node: NodeId, key: &str) -> Option<Bytes> {
        self.origins
            .get(&node)?
            .entries
            .get(key)
            .map(|(_, value)| value.clone())
    }

    pub(crate) fn snapshot(&self) -> BTreeMap<NodeId, Published> {
        let published = |origin: &Origin| Published {
            incarnation: origin.incarnation,
            values: (origin.entries.iter())
                .map(|(key, (_, value))| (key.clone(), value.clone()))
                .collect(),
        };
        self.origins
            .iter()
            .map(|(node, origin)| (*node, published(origin)))
            .collect()
    }

    /// Forgets nodes that are not peers.
    pub(crate) fn retain(&mut self, peers: &BTreeSet<NodeId>) {
        let local = self.local;
        self.origins
            .retain(|node, _| *node == local || peers.contains(node));
    }

    /// The first message of an exchange.
    pub(crate) fn open(&self) -> Message {
        Message::Digest(self.digest())
    }

    /// Takes in a message and gives the next one of the exchange, if any.
    pub(crate) fn on_message(
        &mut self,
        message: Message,
        peers: &BTreeSet<NodeId>,
    ) -> Option<Message> {
        match message {
            Message::Digest(held) => {
                let (missing, digest) = (self.missing(&held), self.digest());
                // Both hold the same, and nobody waits to be told so.
                let same = missing.is_empty() && digest == held;
                (!same).then_some(Message::Answer(missing, digest))
            }
            Message::Answer(deltas, held) => {
                self.apply(deltas, peers);
                let missing = self.missing(&held);
                (!missing.is_empty()).then_some(Message::Deltas(missing))
            }
            Message::Deltas(deltas) => {
                self.apply(deltas, peers);
                None
            }
        }
    }

    fn digest(&self) -> Vec<Held> {
        let held = |(node, origin): (&NodeId, &Origin)| Held {
            node: *node,
            incarnation: origin.incarnation,
            version: origin.version,
        };
        self.origins.iter().map(held).collect()
    }

    /// What a peer that holds `held` lacks, the origins with most missing writes first
    /// ("scuttle-depth"), within the size of a message.
    fn missing(&self, held: &[Held]) -> Vec<Delta> {
        let held: BTreeMap<NodeId, &Held> = held.iter().map(|held| (held.node, held)).collect();
        let mut deltas: Vec<Delta> = Vec::new();
        for (node, origin) in &self.origins {
            let after = match held.get(node) {
                Some(held) if held.incarnation > origin.incarnation => continue,
                Some(held) if held.incarnation == origin.incarnation => {
                    if held.version >= origin.version {
                        continue;
                    }
                    held.version
                }
                // Nothing, or another start's values, which even an empty map replaces.
                Some(_) | None => 0,
            };
            deltas.push(origin.delta(*node, after));
        }
        deltas.sort_by_key(|delta| (std::cmp::Reverse(delta.writes.len()), delta.node));
        let mut room = DELTA_BYTES_MAX;
        for delta in &mut deltas {
            let mut fitting = 0;
            for write in &delta.writes {
                let size = write.key.len() + write.value.len() + ENTRY_OVERHEAD_BYTES;
                if size > room {
                    break;
                }
                room -= size;
                fitting += 1;
            }
            if fitting < delta.writes.len() {
                delta.writes.truncate(fitting);
                room = 0;
            }
        }
        deltas
    }

    fn apply(&mut self, deltas: Vec<Delta>, peers: &BTreeSet<NodeId>) {
        for delta in deltas {
            // What others say of this node is its own past; what they say of a stranger would
            // have no bound.
            if delta.node == self.local || !peers.contains(&delta.node) {
                continue;
            }
            let origin = self.origins.entry(delta.node).or_default();
            if delta.incarnation > origin.incarnation && delta.after == 0 {
                *origin = Origin {
                    incarnation: delta.incarnation,
                    ..Origin::default()
                };
            }
            if delta.incarnation == origin.incarnation && delta.after <= origin.version {
                origin.apply(delta.writes);
            }
        }
    }
}

impl Origin {
    fn delta(&self, node: NodeId, after: u64) -> Delta {
        let mut writes: Vec<Write> = (self.entries.iter())
            .filter(|(_, (version, _))| *version > after)
            .map(|(key, (version, value))| Write {
                version: *version,
                key: key.clone(),
                value: value.to_vec(),
            })
            .collect();
        writes.sort_by_key(|write| write.version);
        Delta {
            node,
            incarnation: self.incarnation,
            after,
            writes,
        }
    }

    /// Applies writes in version order up to the first that breaks a rule: the prefix stays true.
    fn apply(&mut self, writes: Vec<Write>) {
        let mut previous = 0;
        for write in writes {
            let within_limits = write.key.len() <= KEY_BYTES_MAX
                && write.value.len() <= VALUE_BYTES_MAX
                && (self.entries.len() < KEYS_MAX || self.entries.contains_key(&write.key));
            if write.version <= previous || !within_limits {
                return;
            }
            previous = write.version;
            if write.version > self.version {
                self.version = write.version;
                self.entries
                    .insert(write.key, (write.version, write.value.into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(node: u64, incarnation: u64) -> Directory {
        Directory::new(Member {
            node: NodeId(node),
            incarnation: Incarnation(incarnation),
        })
    }

    fn peers() -> BTreeSet<NodeId> {
        (1..=5).map(NodeId).collect()
    }

    fn exchange(a: &mut Directory, b: &mut Directory) {
        let answer = b
            .on_message(a.open(), &peers())
            .expect("a digest is answered");
        if let Some(deltas) = a.on_message(answer, &peers()) {
            assert_eq!(b.on_message(deltas, &peers()), None);
        }
    }

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn one_exchange_brings_both_sides_up_to_date() {
        let (mut a, mut b) = (directory(1, 1), directory(2, 1));
        a.publish("load", bytes("3")).unwrap();
        b.publish("load", bytes("4")).unwrap();
        b.publish("free", bytes("9")).unwrap();
        exchange(&mut a, &mut b);
        assert_eq!(a.read(NodeId(2), "free"), Some(bytes("9")));
        assert_eq!(a.snapshot(), b.snapshot());
    }

    #[test]
    fn peers_that_agree_exchange_one_digest_only() {
        let (mut a, mut b) = (directory(1, 1), directory(2, 1));
        a.publish("load", bytes("3")).unwrap();
        exchange(&mut a, &mut b);
        a.publish("load", bytes("3")).unwrap();
        assert_eq!(b.on_message(a.open(), &peers()), None);
    }

    #[test]
    fn a_restarted_origin_replaces_its_values_even_by_none() {
        let (mut a, mut b) = (directory(1, 1), directory(2, 1));
        a.publish("load", bytes("3")).unwrap();
        a.publish("free", bytes("9")).unwrap();
        exchange(&mut a, &mut b);
        let mut restarted = directory(1, 2);
        exchange(&mut restarted, &mut b);
        assert_eq!(b.read(NodeId(1), "load"), None);
        restarted.publish("load", bytes("5")).unwrap();
        exchange(&mut b, &mut restarted);
        let values = BTreeMap::from([("load".to_owned(), bytes("5"))]);
        assert_eq!(
            b.snapshot()[&NodeId(1)],
            Published {
                incarnation: Incarnation(2),
                values
            }
        );
        exchange(&mut a, &mut b);
        assert_eq!(
            b.read(NodeId(1), "load"),
            Some(bytes("5")),
            "a zombie changes nothing"
        );
    }

    #[test]
    fn a_delta_that_would_leave_a_gap_is_ignored() {
        let (mut a, mut b) = (directory(1, 1), directory(2, 1));
        a.publish("x", bytes("1")).unwrap();
        a.publish("y", bytes("2")).unwrap();
        let gap = a.origins[&NodeId(1)].delta(NodeId(1), 1);
        b.on_message(Message::Deltas(vec![gap.clone()]), &peers());
        assert_eq!(b.read(NodeId(1), "y"), None);
        exchange(&mut a, &mut b);
        b.on_message(Message::Deltas(vec![gap]), &peers());
        assert_eq!(b.snapshot()[&NodeId(1)], a.snapshot()[&NodeId(1)]);
    }

    #[test]
    fn more_than_a_message_holds_arrives_as_a_growing_prefix() {
        let (mut a, mut b) = (directory(1, 1), directory(2, 1));
        let value = Bytes::from(vec![7; VALUE_BYTES_MAX]);
        for key in (0..KEYS_MAX).rev() {
            a.publish(&format!("key-{key}"), value.clone()).unwrap();
        }
        let mut held = Vec::new();
        while held.last() != Some(&KEYS_MAX) {
            exchange(&mut a, &mut b);
            let origin = &b.origins[&NodeId(1)];
            assert_eq!(
                origin.entries.len() as u64,
                origin.version,
                "a prefix, no gap"
            );
            assert!(
                held.last()
                    .is_none_or(|before| *before < origin.entries.len())
            );
            held.push(origin.entries.len());
        }
        assert_eq!(held.len(), 3, "{held:?}");
    }

    #[test]
    fn strangers_and_oversized_maps_take_no_memory() {
        let mut b = directory(2, 1);
        let write = |version: u64| Write {
            version,
            key: format!("{version}"),
            value: vec![0; if version == 3 { VALUE_BYTES_MAX + 1 } else { 1 }],
        };
        let delta = |node: u64, writes: Vec<Write>| Delta {
            node: NodeId(node),
            incarnation: Incarnation(1),
            after: 0,
            writes,
        };
        let many = (10..10 + 2 * KEYS_MAX as u64).map(write).collect();
        let deltas = vec![
            delta(1, vec![write(1), write(2), write(3), write(4)]),
            delta(3, many),
            delta(4, vec![write(2), write(1)]),
            delta(9, vec![write(1)]),
            delta(2, vec![write(1)]),
        ];
        b.on_message(Message::Deltas(deltas), &peers());
        let counts: Vec<_> = b
            .origins
            .iter()
            .map(|(node, origin)| (node.0, origin.entries.len()))
            .collect();
        assert_eq!(counts, [(1, 2), (2, 0), (3, KEYS_MAX), (4, 1)]);
    }

    #[test]
    fn publishing_beyond_a_limit_is_refused() {
        let mut a = directory(1, 1);
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        assert_eq!(
            a.publish(&long, Bytes::new()),
            Err(PublishError::KeyTooLong(65))
        );
        let large = Bytes::from(vec![0; VALUE_BYTES_MAX + 1]);
        assert_eq!(a.publish("k", large), Err(PublishError::ValueTooLong(1025)));
        for key in 0..KEYS_MAX {
            a.publish(&format!("{key}"), Bytes::new()).unwrap();
        }
        assert_eq!(
            a.publish("more", Bytes::new()),
            Err(PublishError::TooManyKeys)
        );
        assert_eq!(a.publish("0", bytes("new")), Ok(()));
    }

    #[test]
    fn wire_form_of_version_1_is_frozen() {
        let mut a = directory(1, 300);
        a.publish("k", bytes("v")).unwrap();
        let message = Message::Answer(a.missing(&[]), a.digest());
        let encoded = postcard::to_allocvec(&message).unwrap();
        let expected = [
            1, 1, 1, 0xac, 2, 0, 1, 1, 1, b'k', 1, b'v', 1, 1, 0xac, 2, 1,
        ];
        assert_eq!(encoded, expected);
    }
}
