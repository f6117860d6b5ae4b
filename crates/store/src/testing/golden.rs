//! Golden images: what a store of each format left on its disks after a fixed workload.
//!
//! An image is kept for ever, packed: pages that are not zero, each run-length encoded. Today's
//! code has to open it and find what the workload put there; and as long as the formats are the
//! same, it has to leave the very same bytes.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_runtime::{PAGE_BYTES, Runtime};

use super::contents::{AreaContents, Contents};
use super::{MemoryDirectory, run};
use crate::{
    BLOCK_BYTES, Body, Copied, CopiedBlock, CopyState, OperationId, Record, Seq, SliceKey, Store,
    StoreBounds, StoreError, StoreOptions, View,
};

/// Which version each structure on disk has, as this program writes it.
pub fn formats() -> String {
    format!(
        "journal {} batch {} facts {} manifest {} group {} run {}",
        crate::journal::VERSION,
        crate::journal::batch::VERSION,
        crate::facts::VERSION,
        crate::home::VERSIONS[0],
        crate::home::VERSIONS[1],
        crate::home::VERSIONS[2],
    )
}

/// How the store of every image is laid out.
pub const OPTIONS: StoreOptions = StoreOptions {
    identity: *b"a golden store!!",
    journal_bytes: 512 << 10,
    home_bytes: 6 << 20,
    home_preallocated: false,
    slice_blocks: 2048,
    bounds: StoreBounds::SERVICE,
};

/// In sync, with blocks in tables, deltas and the journal.
const FULL: SliceKey = SliceKey {
    volume: 1,
    slice: 0,
};
/// Joining, with copied blocks.
const JOINING: SliceKey = SliceKey {
    volume: 1,
    slice: 7,
};
/// Removed.
const GONE: SliceKey = SliceKey {
    volume: 2,
    slice: 0,
};

/// Runs the workload on an empty store, and packs what it leaves. Never change it: another format
/// gets another image of the same workload.
pub fn image() -> Vec<u8> {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        // What nobody has written is no part of any format.
        directory.keep_all();
        workload(&runtime, &directory)
            .await
            .expect("a store in memory works");
        directory.kill();
        pack(&formats(), directory.contents().areas())
    })
}

/// The formats of an image, and a machine that holds it.
///
/// # Panics
///
/// If these bytes are no image.
pub fn opened(runtime: &Runtime, image: &[u8]) -> (String, MemoryDirectory) {
    let (formats, areas) = unpack(image).expect("a golden image");
    let directory = MemoryDirectory::with_contents(runtime.clone(), &Contents::new(areas));
    (formats, directory)
}

async fn workload(runtime: &Runtime, directory: &MemoryDirectory) -> Result<(), StoreError> {
    let directory = Rc::new(directory.clone());
    let (store, _) = Store::open(runtime.clone(), directory, OPTIONS).await?;
    store.promise(FULL.volume, View(3)).await?;
    for slice in [FULL, GONE] {
        store.set_copy_state(slice, CopyState::InSync).await?;
    }
    let joining = CopyState::Joining { base: Seq(40) };
    store.set_copy_state(JOINING, joining).await?;
    let mut seq = 0;
    for block in 0..300 {
        seq += 1;
        store.append(vec![write(FULL, seq, block)]).await?;
        store.append(vec![write(GONE, seq, block)]).await?;
        store.set_stable(FULL, Seq(seq));
        store.set_stable(GONE, Seq(seq));
        if block % 50 == 49 {
            store.flush().await?;
        }
    }
    store.compact().await?;
    store.remove_volume(GONE.volume).await?;
    for block in (0..300).step_by(7) {
        seq += 1;
        store.append(vec![write(FULL, seq, block)]).await?;
    }
    seq += 1;
    let zeroes = Body::Zero {
        first_block: 100,
        blocks: 20,
    };
    store.append(vec![record(FULL, seq, zeroes)]).await?;
    store.set_stable(FULL, Seq(seq));
    store.flush().await?;
    let copied = (0..5).map(|block| CopiedBlock {
        block,
        view: View(2),
        seq: Seq(41),
        content: match block {
            3 => Copied::Zero,
            _ => Copied::Bytes(content(JOINING, 41, block)),
        },
    });
    store.install(JOINING, copied.collect()).await?;
    // Three that are stable and still in the journal, two that are not, one that was taken back.
    for block in 1000..1006 {
        seq += 1;
        store.append(vec![write(FULL, seq, block)]).await?;
    }
    store.truncate(FULL, Seq(seq - 1)).await?;
    store.set_stable(FULL, Seq(seq - 3));
    // Until the journal is sealed.
    runtime.sleep(Duration::from_millis(100)).await;
    Ok(())
}

/// Whether the store holds what the workload put there.
///
/// # Errors
///
/// What is not as it should be.
pub async fn verify(store: &Store) -> Result<(), String> {
    let mut expected: BTreeMap<u32, u64> = (0..300).map(|b| (b, u64::from(b) + 1)).collect();
    for (block, number) in (0..300).step_by(7).zip(301..) {
        expected.insert(block, number);
    }
    for block in 100..120 {
        expected.remove(&block);
    }
    expected.extend((1000..1003).zip(345..));
    for block in 0..OPTIONS.slice_blocks {
        let wanted = match expected.get(&block) {
            Some(seq) => content(FULL, *seq, block),
            None => Bytes::from_static(&[0; BLOCK_BYTES]),
        };
        let found = store.read(FULL, block, 1).await;
        if found.as_ref() != Ok(&wanted) {
            return Err(format!("block {block} is not what record wrote it"));
        }
    }
    for block in [0, 1, 2, 4] {
        let found = store.read(JOINING, block, 1).await;
        if found != Ok(content(JOINING, 41, block)) {
            return Err(format!("copied block {block} is another"));
        }
    }
    let tail: Vec<u64> = store.tail(FULL).iter().map(|entry| entry.seq.0).collect();
    let known = (
        store.stable(FULL),
        tail,
        store.promised(FULL.volume),
        store.copy_state(FULL),
        store.copy_state(JOINING),
        store.copy_state(GONE),
    );
    let wanted = (
        Seq(347),
        vec![348, 349],
        View(3),
        CopyState::InSync,
        CopyState::Joining { base: Seq(40) },
        CopyState::Absent,
    );
    if known != wanted {
        return Err(format!("{known:?} instead of {wanted:?}"));
    }
    Ok(())
}

fn content(slice: SliceKey, seq: u64, block: u32) -> Bytes {
    // Long runs of few values: an image must be small.
    let mut bytes = vec![seq as u8; BLOCK_BYTES];
    bytes[..4].copy_from_slice(&block.to_le_bytes());
    bytes[4..12].copy_from_slice(&seq.to_le_bytes());
    bytes[12..16].copy_from_slice(&slice.slice.to_le_bytes());
    Bytes::from(bytes)
}

fn write(slice: SliceKey, seq: u64, block: u32) -> Record {
    let data = content(slice, seq, block);
    let body = Body::Write {
        first_block: block,
        data,
    };
    record(slice, seq, body)
}

fn record(slice: SliceKey, seq: u64, body: Body) -> Record {
    Record {
        slice,
        view: View(3),
        seq: Seq(seq),
        stable: Seq(0),
        operation: OperationId {
            origin: 9,
            number: seq,
        },
        body,
    }
}

type Areas = BTreeMap<String, AreaContents>;

/// First line: the formats. Then for each area its name, size and pages.
fn pack(formats: &str, areas: &Areas) -> Vec<u8> {
    let mut packed = format!("{formats}\n").into_bytes();
    for (name, area) in areas {
        let AreaContents { size_bytes, pages } = area;
        packed.push(name.len() as u8);
        packed.extend_from_slice(name.as_bytes());
        packed.extend_from_slice(&size_bytes.to_le_bytes());
        let pages: Vec<_> = pages
            .iter()
            .filter(|(_, page)| page.iter().any(|byte| *byte != 0))
            .collect();
        packed.extend_from_slice(&(pages.len() as u32).to_le_bytes());
        for (number, page) in pages {
            packed.extend_from_slice(&(*number as u32).to_le_bytes());
            let runs = page.chunk_by(|one, next| one == next);
            let runs: Vec<&[u8]> = runs.collect();
            // Each run at once, or bytes that differ as they are: 1 length 2, content.
            let mut at = 0;
            while at < runs.len() {
                if runs[at].len() > 3 {
                    packed.push(1);
                    packed.extend_from_slice(&(runs[at].len() as u16).to_le_bytes());
                    packed.push(runs[at][0]);
                    at += 1;
                    continue;
                }
                let plain = runs[at..].iter().take_while(|run| run.len() <= 3);
                let plain: Vec<u8> = plain.flat_map(|run| run.iter().copied()).collect();
                at += runs[at..].iter().take_while(|run| run.len() <= 3).count();
                packed.push(0);
                packed.extend_from_slice(&(plain.len() as u16).to_le_bytes());
                packed.extend_from_slice(&plain);
            }
        }
    }
    packed
}

fn unpack(image: &[u8]) -> Option<(String, Areas)> {
    let line = image.iter().position(|byte| *byte == b'\n')?;
    let formats = String::from_utf8(image[..line].to_vec()).ok()?;
    let mut rest = &image[line + 1..];
    let mut take = |bytes: usize| {
        let (head, tail) = rest.split_at_checked(bytes)?;
        rest = tail;
        Some(head)
    };
    let mut areas = Areas::new();
    while let Some(length) = take(1) {
        let name = String::from_utf8(take(usize::from(length[0]))?.to_vec()).ok()?;
        let size = u64::from_le_bytes(take(8)?.try_into().ok()?);
        let mut pages = BTreeMap::new();
        for _ in 0..u32::from_le_bytes(take(4)?.try_into().ok()?) {
            let number = u32::from_le_bytes(take(4)?.try_into().ok()?);
            let mut page = Vec::with_capacity(PAGE_BYTES);
            while page.len() < PAGE_BYTES {
                let kind = take(1)?[0];
                let length = u16::from_le_bytes(take(2)?.try_into().ok()?);
                match kind {
                    1 => page.resize(page.len() + usize::from(length), take(1)?[0]),
                    _ => page.extend_from_slice(take(usize::from(length))?),
                }
            }
            pages.insert(u64::from(number), Rc::from(page));
        }
        let size_bytes = size;
        areas.insert(name, AreaContents { size_bytes, pages });
    }
    Some((formats, areas))
}
