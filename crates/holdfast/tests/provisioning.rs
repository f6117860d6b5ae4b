//! GET LBA STATUS through real processes: told from the maps of the copies, at any node.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::time::Duration;

use bytes::Bytes;
use harness::{PATIENCE, alone, cluster, holdfast, stderr};
use holdfast::fleet::Fleet;
use holdfast_initiator::{BlockRange, Command, Error, Session, SessionOptions, Transfer};
use tokio::time::{sleep, timeout};

const BLOCK: u32 = 512;
/// Blocks of a GiB, which is one slice.
const GIB: u64 = (1 << 30) / BLOCK as u64;
/// A volume of many slices, which opens in a moment also in a slow build.
const VOLUME: u64 = 128 * GIB;
/// Blocks of 4 KiB, in which the volume is kept.
const PAGE: u64 = 8;

async fn log_in(fleet: &Fleet, node: usize) -> Session {
    let options = SessionOptions::new("iqn.2026-11.io.holdfast:a");
    let target = "iqn.2026-11.io.holdfast:big";
    let session = Session::connect(fleet.portals()[node], target, &options).await;
    let session = session.expect("a login");
    session.clear_attentions(0).await.expect("a quiet unit");
    session
}

/// GET LBA STATUS from a block on: whether each run is mapped, and its blocks.
async fn status(session: &Session, first: u64, descriptors: u32) -> Vec<(bool, u32)> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x9e, 0x12);
    cdb[2..10].copy_from_slice(&first.to_be_bytes());
    let bytes = 8 + 16 * descriptors;
    cdb[10..14].copy_from_slice(&bytes.to_be_bytes());
    let asking = async {
        loop {
            let command = Command {
                lun: 0,
                cdb,
                transfer: Transfer::Read(bytes),
            };
            match session.execute(command).await {
                Ok(output) => break output.data,
                // Owners and states of ports may change.
                Err(Error::Busy { .. } | Error::CheckCondition { key: 6, .. }) => {
                    sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    let data = timeout(PATIENCE, asking).await.expect("an answer");
    let mut next = first;
    data[8..]
        .chunks(16)
        .map(|descriptor| {
            let at = u64::from_be_bytes(descriptor[..8].try_into().expect("eight bytes"));
            let blocks = u32::from_be_bytes(descriptor[8..12].try_into().expect("four bytes"));
            assert_eq!(at, next, "descriptors follow each other");
            next += u64::from(blocks);
            (descriptor[12] & 0x0f == 0, blocks)
        })
        .collect()
}

async fn write(session: &Session, first: u64, blocks: u32, byte: u8) {
    let data = Bytes::from(vec![byte; (blocks * BLOCK) as usize]);
    let range = BlockRange { first, blocks };
    session.write(0, range, data).await.expect("a write");
}

#[test]
fn an_empty_volume_is_one_descriptor_and_written_blocks_are_told_at_every_node() {
    alone(async |folder| {
        let mut fleet = cluster(folder, 3).await;
        let create = [
            "volume",
            "create",
            "big",
            "--size",
            "128GiB",
            "--copies",
            "2",
            "--no-chap",
        ];
        let created = holdfast(&fleet, &create).await;
        assert!(created.status.success(), "{}", stderr(&created));
        let sessions = [
            log_in(&fleet, 0).await,
            log_in(&fleet, 1).await,
            log_in(&fleet, 2).await,
        ];
        for session in &sessions {
            assert_eq!(status(session, 0, 1).await, [(false, VOLUME as u32)]);
            let rest = (VOLUME - 7 * GIB - 3) as u32;
            assert_eq!(status(session, 7 * GIB + 3, 64).await, [(false, rest)]);
        }

        // In three slices; zeroes are written as data; a part of a block maps all of it.
        let [writer, ..] = &sessions;
        write(writer, GIB + 8 * PAGE, 2 * PAGE as u32, 1).await;
        write(writer, 5 * GIB, PAGE as u32, 0).await;
        write(writer, 9 * GIB - 1, 2, 1).await;
        let page = PAGE as u32;
        let expected = [
            (false, GIB as u32 + 8 * page),
            (true, 2 * page),
            (false, (4 * GIB) as u32 - 10 * page),
            (true, page),
            (false, (4 * GIB) as u32 - 2 * page),
            (true, 2 * page),
            (false, (VOLUME - 9 * GIB) as u32 - page),
        ];
        for session in &sessions {
            assert_eq!(status(session, 0, 64).await, expected);
            assert_eq!(status(session, 0, 2).await, expected[..2], "as many as fit");
            assert_eq!(status(session, GIB + 9 * PAGE, 1).await, [(true, page)]);
        }

        let given_back = [BlockRange {
            first: GIB + 8 * PAGE,
            blocks: 1 + page,
        }];
        writer.unmap(0, &given_back).await.expect("an UNMAP");
        // One whole block was given back; of the other one a part was zeroed.
        let after = [
            (false, GIB as u32 + 9 * page),
            (true, page),
            (false, (4 * GIB) as u32 - 10 * page),
        ];
        for session in &sessions {
            assert_eq!(status(session, 0, 3).await, after);
        }

        let owner = fleet.client(0).volume("big").await.expect("big").owner;
        let owner = owner.expect("an owner") as usize - 1;
        fleet.kill(&[owner]).await.unwrap();
        for (node, session) in sessions.iter().enumerate() {
            if node != owner {
                assert_eq!(status(session, 0, 3).await, after, "at the next owner");
            }
        }
    });
}
