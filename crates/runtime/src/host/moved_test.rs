//! Nodes that are not where the others were told that they are.

use super::links_test::{FIRST, Node, ONE, TWO, authority};
use super::*;
use crate::links::{DownReason, NodeId};

const THREE: NodeId = NodeId(3);
/// Nobody listens there.
const ABANDONED: &str = "127.0.0.1:1";

#[test]
fn nodes_that_all_have_moved_find_one_another_through_one_new_address() {
    run(async |runtime| {
        let authority = authority();
        let mut one = Node::start(&runtime, &authority, ONE).await;
        let mut two = Node::start(&runtime, &authority, TWO).await;
        let mut three = Node::start(&runtime, &authority, THREE).await;
        // Whoever is asked for at the one address that they are given.
        two.links.seek([one.address()]);
        three.links.seek([one.address()]);
        two.meet(&[(ONE, ABANDONED), (THREE, ABANDONED)]);
        three.meet(&[(ONE, ABANDONED), (TWO, ABANDONED)]);
        one.meet(&[(TWO, ABANDONED)]);
        one.expect_up(TWO, FIRST).await;
        two.expect_up(ONE, FIRST).await;
        one.meet(&[(TWO, ABANDONED), (THREE, ABANDONED)]);
        one.expect_up(THREE, FIRST).await;
        three.expect_up(ONE, FIRST).await;
        let known = |node: &Node| -> Vec<String> {
            let status = node.links.status().into_iter();
            status.map(|peer| peer.address).collect()
        };
        assert_eq!(known(&one), [two.address(), three.address()]);
        assert_eq!(known(&two), [one.address(), ABANDONED.to_owned()]);
        // The third's name is not on the certificate that answers there.
        assert_eq!(two.problem(THREE).await, LinkProblem::NotRunning);
        // Once it is told, it finds it.
        two.meet(&[(ONE, ABANDONED), (THREE, &three.address())]);
        two.expect_up(THREE, FIRST).await;
        three.expect_up(TWO, FIRST).await;
    });
}

#[test]
fn a_refusal_where_a_node_was_earlier_does_not_prove_that_it_is_gone_from_where_it_is() {
    run(async |runtime| {
        let authority = authority();
        let mut one = Node::start(&runtime, &authority, ONE).await;
        let mut two = Node::start(&runtime, &authority, TWO).await;
        one.meet(&[(TWO, ABANDONED)]);
        two.meet(&[(ONE, &one.address())]);
        one.expect_up(TWO, FIRST).await;
        two.expect_up(ONE, FIRST).await;
        two.meet(&[]);
        assert_eq!(one.expect_down(TWO, FIRST).await, DownReason::Lost);
        // It is dialled where it is, and says that it does not want to.
        let refused = LinkProblem::RefusedByPeer(LinkRefusal::UnknownNode);
        let refused_at = async {
            while one.problem(TWO).await != refused {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let limit = std::time::Duration::from_secs(10);
        tokio::time::timeout(limit, refused_at)
            .await
            .expect("dialled");
        assert!(one.events.try_recv().is_err(), "no news of its end");
        // When it ends, that is noticed there, too.
        drop(two);
        assert_eq!(one.expect_down(TWO, FIRST).await, DownReason::Refused);
    });
}
