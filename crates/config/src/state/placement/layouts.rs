//! Layouts that were computed: base blocks take up to milliseconds, and depend on nothing but how
//! many nodes and copies there are.
//!
//! So what is remembered here changes how long an answer takes, never the answer. All clones of a
//! state share it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use holdfast_layout::Layout;
use holdfast_runtime::NodeId;
use holdfast_wire::VolumeId;

/// See the module's header.
#[derive(Clone, Default)]
pub(in crate::state) struct Layouts(Rc<RefCell<Known>>);

/// By how many nodes and copies they are for.
type Known = BTreeMap<(usize, usize), Rc<Layout>>;

impl Layouts {
    /// The nodes of a slice: `copies` of these, or all if there are fewer.
    pub(in crate::state) fn place(
        &self,
        nodes: &[NodeId],
        volume: VolumeId,
        slice: u32,
        copies: usize,
    ) -> Vec<NodeId> {
        let layout = self.layout(nodes.len(), copies);
        let places = layout.place(volume.0, slice).into_iter();
        places.map(|place| nodes[place as usize]).collect()
    }

    /// A layout over the places 0, 1, .. in a list of so many nodes.
    fn layout(&self, nodes: usize, copies: usize) -> Rc<Layout> {
        let mut known = self.0.borrow_mut();
        let layout = known.entry((nodes, copies)).or_insert_with(|| {
            let places: Vec<u64> = (0..nodes as u64).collect();
            Rc::new(Layout::new(&places, copies))
        });
        layout.clone()
    }
}

impl PartialEq for Layouts {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Layouts {}

impl std::fmt::Debug for Layouts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Layouts").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_gives_the_answer_of_the_layout_itself() {
        let layouts = Layouts::default();
        for nodes in [&[3, 9][..], &[1, 2, 5, 6], &[4, 8, 15, 16, 23, 42], &[7]] {
            let ids: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
            for (volume, slice, copies) in [(1, 0, 3), (7, 12_345, 2), (900, 3, 5), (2, 1, 0)] {
                let placed = layouts.place(&ids, VolumeId(volume), slice, copies);
                let placed: Vec<u64> = placed.iter().map(|node| node.0).collect();
                let direct = holdfast_layout::place(nodes, volume, slice, copies);
                assert_eq!(placed, direct);
            }
        }
    }
}
