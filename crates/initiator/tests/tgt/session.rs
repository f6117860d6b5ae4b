//! Sessions: login, commands, errors.

use bytes::Bytes;
use futures::future::join_all;
use holdfast_initiator::{
    BlockRange, Chap, Command, DigestOffer, Error, Health, LostReason, Residual, Secret, Session,
    SessionOptions, Transfer, discover,
};

use crate::peer::{self, DISK_BYTES, LUN, Peer, TARGET, on_one_thread};

async fn ready_session(peer: &Peer, options: &SessionOptions) -> Session {
    let session = Session::connect(peer.portal, TARGET, options)
        .await
        .unwrap();
    session.clear_attentions(LUN).await.unwrap();
    session
}

fn pattern(length: usize, salt: usize) -> Bytes {
    (0..length)
        .map(|at| ((at / 512) * 31 + at % 251 + salt) as u8)
        .collect::<Vec<u8>>()
        .into()
}

fn blocks(first: u64, length: usize) -> BlockRange {
    BlockRange {
        first,
        blocks: (length / 512) as u32,
    }
}

#[test]
fn discovery_names_the_target_and_its_portal() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let peer = Peer::start();
        let targets = discover(peer.portal, &peer.session_options())
            .await
            .unwrap();
        assert_eq!(targets.len(), 1);
        assert_eq!(targets[0].name, TARGET);
        assert_eq!(targets[0].portals, [format!("{},1", peer.portal)]);
    });
}

#[test]
fn a_disk_describes_itself() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let peer = Peer::start();
        let session = ready_session(&peer, &peer.session_options()).await;
        let capacity = session.read_capacity(LUN).await.unwrap();
        assert_eq!((capacity.bytes(), capacity.block_length), (DISK_BYTES, 512));
        assert!(capacity.thin);
        let inquiry = session.inquiry(LUN).await.unwrap();
        assert_eq!((inquiry.peripheral, inquiry.vendor.as_str()), (0, "IET"));
        assert_eq!(session.report_luns().await.unwrap(), [0, LUN]);
        assert!(!session.unit_designators(LUN).await.unwrap().is_empty());
        session.ping().await.unwrap();
        session.logout().await.unwrap();
    });
}

#[test]
fn data_survives_every_way_of_transfer() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let peer = Peer::start();
        peer.allow_unsolicited_data_and_digests();
        let base = peer.session_options();
        let small = |options| SessionOptions {
            max_receive_segment: 4096,
            first_burst: 8192,
            max_burst: 16_384,
            ..options
        };
        let ways = [
            base.clone(),
            small(base.clone()),
            SessionOptions {
                immediate_data: false,
                ..base.clone()
            },
            SessionOptions {
                initial_r2t: true,
                ..base.clone()
            },
            small(SessionOptions {
                initial_r2t: true,
                immediate_data: false,
                ..base.clone()
            }),
            small(SessionOptions {
                header_digest: DigestOffer::Require,
                data_digest: DigestOffer::Require,
                ..base.clone()
            }),
        ];
        for (salt, options) in ways.iter().enumerate() {
            let session = ready_session(&peer, options).await;
            let agreed = session.negotiated();
            assert_eq!(agreed.immediate_data, options.immediate_data);
            assert_eq!(agreed.initial_r2t, options.initial_r2t);
            let wants_digest = options.data_digest == DigestOffer::Require;
            assert_eq!(
                (agreed.header_digest, agreed.data_digest),
                (wants_digest, wants_digest)
            );
            for (place, length) in [512, 4096, 8192, 66_048, 1 << 20].into_iter().enumerate() {
                let data = pattern(length, salt);
                let range = blocks(place as u64 * 4096, length);
                session.write(LUN, range, data.clone()).await.unwrap();
                let found = session.read(LUN, range, 512).await.unwrap();
                assert_eq!(found, data, "{length} bytes with {options:?}");
            }
            session
                .synchronize_cache(
                    LUN,
                    BlockRange {
                        first: 0,
                        blocks: 0,
                    },
                )
                .await
                .unwrap();
            session.logout().await.unwrap();
        }
    });
}

#[test]
fn hundreds_of_commands_share_the_window() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let peer = Peer::start();
        let session = ready_session(&peer, &peer.session_options()).await;
        let session = &session;
        let writes = (0..400).map(async |index: usize| {
            let data = pattern(4096, index);
            session
                .write(LUN, blocks(index as u64 * 8, 4096), data)
                .await
        });
        assert!(join_all(writes).await.iter().all(Result::is_ok));
        let reads = (0..400).map(async |index: usize| {
            let found = session
                .read(LUN, blocks(index as u64 * 8, 4096), 512)
                .await
                .unwrap();
            assert_eq!(found, pattern(4096, index));
        });
        join_all(reads).await;
        assert!(session.is_idle());
    });
}

#[test]
fn unmapped_blocks_read_as_zeros() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let peer = Peer::start();
        let session = ready_session(&peer, &peer.session_options()).await;
        let all = blocks(0, 65_536);
        session.write(LUN, all, pattern(65_536, 1)).await.unwrap();
        let holes = [blocks(8, 4096), blocks(64, 8192)];
        session.unmap(LUN, &holes).await.unwrap();
        let found = session.read(LUN, all, 512).await.unwrap();
        let mut expected = pattern(65_536, 1).to_vec();
        expected[8 * 512..16 * 512].fill(0);
        expected[64 * 512..80 * 512].fill(0);
        assert!(found == expected, "only the holes are zero");
    });
}

#[test]
fn a_short_answer_comes_with_its_residual() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let peer = Peer::start();
        let session = ready_session(&peer, &peer.session_options()).await;
        let mut command = Command::inquiry(LUN, None);
        command.transfer = Transfer::Read(4096);
        let output = session.execute(command).await.unwrap();
        let missing = 4096 - output.data.len() as u32;
        assert!(missing > 0);
        assert_eq!(output.residual, Residual::Underflow(missing));
    });
}

#[test]
fn refused_commands_carry_their_sense() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let peer = Peer::start();
        let session = ready_session(&peer, &peer.session_options()).await;
        let beyond = session.read(LUN, blocks(DISK_BYTES / 512, 512), 512).await;
        let expected = Error::CheckCondition {
            key: 5,
            asc: 0x21,
            ascq: 0,
        };
        assert_eq!(beyond.unwrap_err(), expected);
        let mut unknown = Command::test_unit_ready(LUN);
        unknown.cdb[0] = 0xff;
        let expected = Error::CheckCondition {
            key: 5,
            asc: 0x20,
            ascq: 0,
        };
        assert_eq!(session.execute(unknown).await.unwrap_err(), expected);
        // The session is as good as before.
        session.test_unit_ready(LUN).await.unwrap();
    });
}

#[test]
fn an_unknown_target_and_a_closed_port_are_told_apart() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let mut peer = Peer::start();
        let options = peer.session_options();
        let unknown = Session::connect(peer.portal, "iqn.2026-11.nowhere:x", &options).await;
        let refused = unknown.err().unwrap();
        assert!(
            matches!(
                refused,
                Error::LoginRefused {
                    class: 2,
                    detail: 3,
                    ..
                }
            ),
            "{refused}"
        );
        peer.kill();
        let closed = Session::connect(peer.portal, TARGET, &options)
            .await
            .err()
            .unwrap();
        let kind = std::io::ErrorKind::ConnectionRefused;
        assert_eq!(
            closed,
            Error::Connect {
                portal: peer.portal,
                kind
            }
        );
    });
}

#[test]
fn chap_admits_the_right_secret_alone() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let peer = Peer::start();
        peer.demand_chap(("user", "initiator-secret"), None);
        let connect = async |chap: Option<Chap>| {
            let options = SessionOptions {
                chap,
                ..peer.session_options()
            };
            let session = Session::connect(peer.portal, TARGET, &options).await?;
            session.clear_attentions(LUN).await
        };
        let chap = |user, secret| Some(Chap::new(user, Secret::new(secret)));
        assert_eq!(connect(chap("user", "initiator-secret")).await, Ok(()));
        let failed = Err(Error::AuthenticationFailed);
        assert_eq!(connect(chap("user", "wrong-secret-123")).await, failed);
        assert_eq!(connect(chap("nobody", "initiator-secret")).await, failed);
        assert_eq!(connect(None).await, failed);
    });
}

#[test]
fn mutual_chap_demands_the_targets_proof() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let peer = Peer::start();
        peer.demand_chap(
            ("user", "initiator-secret"),
            Some(("target", "target-secret")),
        );
        let connect = async |name: &str, secret: &str| {
            let chap = Chap::new("user", Secret::new("initiator-secret"))
                .with_mutual(Some(name.to_owned()), Secret::new(secret));
            let options = SessionOptions {
                chap: Some(chap),
                ..peer.session_options()
            };
            let session = Session::connect(peer.portal, TARGET, &options).await?;
            session.clear_attentions(LUN).await
        };
        assert_eq!(connect("target", "target-secret").await, Ok(()));
        for (name, secret) in [("target", "another-secret"), ("other", "target-secret")] {
            let refused = connect(name, secret).await;
            assert!(
                matches!(refused, Err(Error::TargetNotProven { .. })),
                "{refused:?}"
            );
        }
    });
}

#[test]
fn a_killed_target_ends_every_outstanding_command() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let mut peer = Peer::start();
        let session = ready_session(&peer, &peer.session_options()).await;
        let mut health = session.health();
        let session = &session;
        peer.freeze();
        let reads = join_all(
            (0..40).map(async |index| session.read(LUN, blocks(index * 8, 4096), 512).await),
        );
        let killed = async {
            tokio::task::yield_now().await;
            assert!(session.oldest_outstanding().is_some());
            peer.kill();
        };
        let (reads, ()) = tokio::join!(reads, killed);
        let is_lost = |result: &Result<Bytes, Error>| {
            matches!(result, Err(Error::ConnectionLost { reason })
                if matches!(reason, LostReason::ClosedByTarget | LostReason::Io(_)))
        };
        assert!(reads.iter().all(is_lost), "{reads:?}");
        let lost = health
            .wait_for(|health| matches!(health, Health::Lost(_)))
            .await;
        assert!(lost.is_ok());
        assert!(
            session
                .test_unit_ready(LUN)
                .await
                .unwrap_err()
                .is_session_lost()
        );
    });
}
