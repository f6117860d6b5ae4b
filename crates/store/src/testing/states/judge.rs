//! What must hold of a store that is opened after a crash:
//!
//! * it opens, and finds no damage;
//! * the stream has every acknowledged record and none that was not submitted, each as it was
//!   submitted; a truncation happened wholly or not at all;
//! * the stable point is not above the one that was announced;
//! * every block reads as its records say: at the stable point before and after the journal is
//!   read in, after a takeover at the stream's end, and again when everything is at home, in
//!   tables, in other segments, and when all free ones were given back; block by block, as a part
//!   of the range and as the whole;
//! * what is said to have changed since any position is what the records since then touch;
//! * every block that the journal holds data for has room, the home's counts of what refers to
//!   its segments are right, and once everything is at home just that takes space.

use std::rc::Rc;

use holdfast_runtime::Runtime;

use super::super::MemoryDirectory;
use super::super::contents::Contents;
use super::play::{Life, Promise, SLICE, filled, options};
use crate::{BLOCK_BYTES, Seq, Store};

/// The blocks that are looked at.
pub(super) const BLOCKS: u32 = 4;

/// Opens the store, which has to find it undamaged.
pub(super) async fn opened(
    runtime: &Runtime,
    directory: &MemoryDirectory,
) -> Result<Rc<Store>, String> {
    let opening = Store::open(runtime.clone(), Rc::new(directory.clone()), options());
    let (store, report) = opening
        .await
        .map_err(|error| format!("not opened: {error}"))?;
    if report.found_damage() || store.damaged() {
        return Err(format!("a crash is no damage: {report:?}"));
    }
    Ok(store)
}

/// Opens disks as a crash left them, judges, and lets the store work on. Returns what it did, if
/// that was to be recorded.
pub(super) async fn judge(
    runtime: Runtime,
    begin: Contents,
    promise: Promise,
    is_recorded: bool,
) -> Result<Life, String> {
    let directory = MemoryDirectory::with_contents(runtime.clone(), &begin);
    if is_recorded {
        directory.record();
    }
    let from_now = |promise: &Promise| Promise {
        from_event: directory.recorded(),
        operation: None,
        ..promise.clone()
    };
    let mut promises = vec![from_now(&promise)];
    let store = opened(&runtime, &directory).await?;
    let last = store.last_seq(SLICE).0;
    if ![promise.acknowledged, promise.records.len() as u64].contains(&last) {
        return Err(format!("the stream ends at {last}"));
    }
    let stable = store.stable(SLICE).0;
    if stable > promise.stable {
        return Err(format!("stable up to {stable}"));
    }
    // From here on it is decided which records there are.
    let mut decided = from_now(&promise);
    Rc::make_mut(&mut decided.records).truncate(last as usize);
    decided.acknowledged = last;
    judge_tail(&store, &decided, stable).await?;
    is_claimed_what_is_held(&store, &decided)?;
    promises.push(decided.clone());
    let announced = stable.max(promise.stable.min(last));
    store.set_stable(SLICE, Seq(announced));
    judge_blocks(&store, &decided, announced, "").await?;
    let recovered = store.recovered().await;
    recovered.map_err(|error| format!("not read in: {error}"))?;
    if store.damaged() {
        return Err("a crash is no damage to the journal's data".to_owned());
    }
    judge_blocks(&store, &decided, announced, " once all is read in").await?;
    decided.stable = last;
    promises.push(Promise {
        from_event: directory.recorded(),
        ..decided.clone()
    });
    store.set_stable(SLICE, Seq(last));
    judge_blocks(&store, &decided, last, " after a takeover").await?;
    store.flush().await.map_err(|error| error.to_string())?;
    judge_blocks(&store, &decided, last, " at home").await?;
    judge_space(&store, &decided).await?;
    store.compact().await.map_err(|error| error.to_string())?;
    judge_blocks(&store, &decided, last, " in tables").await?;
    store.collect().await.map_err(|error| error.to_string())?;
    judge_blocks(&store, &decided, last, " in other segments").await?;
    store.discard().await;
    judge_blocks(&store, &decided, last, " beside what was given back").await?;
    judge_space(&store, &decided).await?;
    Ok(Life {
        begin,
        events: directory.take_events(),
        promises,
    })
}

/// The records above the stable point have to be there as they were submitted.
async fn judge_tail(store: &Store, promise: &Promise, stable: u64) -> Result<(), String> {
    let tail = store.tail(SLICE);
    let found: Vec<u64> = tail.iter().map(|entry| entry.seq.0).collect();
    let wanted: Vec<u64> = (stable + 1..=promise.acknowledged).collect();
    if found != wanted {
        return Err(format!("the tail is {found:?}, not {wanted:?}"));
    }
    for entry in tail {
        let read = store.read_record(SLICE, entry.view, entry.seq).await;
        let read = read.map_err(|error| format!("record {:?}: {error}", entry.seq))?;
        let read = read.map(|record| (record.view, record.body));
        if read != promise.body(entry.seq.0) {
            return Err(format!("record {:?} is another one", entry.seq));
        }
    }
    Ok(())
}

async fn judge_blocks(
    store: &Store,
    promise: &Promise,
    through: u64,
    when: &str,
) -> Result<(), String> {
    let read = store.read(SLICE, 0, BLOCKS).await;
    let read = read.map_err(|error| format!("at {through}{when}: {error}"))?;
    for (block, bytes) in (0..).zip(read.chunks(BLOCK_BYTES)) {
        let fill = promise.fill(through, block);
        if !is_block(bytes, fill) {
            let found = bytes[0];
            return Err(format!(
                "block {block} at {through}{when} reads {found}, not {fill}"
            ));
        }
    }
    for (first, blocks) in (0..BLOCKS).map(|block| (block, 1)).chain([(1, BLOCKS - 1)]) {
        let part = store.read(SLICE, first, blocks).await;
        let part = part.map_err(|error| format!("{first}+{blocks} at {through}{when}: {error}"))?;
        let from = first as usize * BLOCK_BYTES;
        if part[..] != read[from..from + part.len()] {
            return Err(format!(
                "{first}+{blocks} at {through}{when} reads otherwise"
            ));
        }
    }
    judge_changed(store, promise, through, when).await
}

/// What a resync of a copy that is complete up to any position would be told.
async fn judge_changed(
    store: &Store,
    promise: &Promise,
    through: u64,
    when: &str,
) -> Result<(), String> {
    for after in 0..through {
        let found = store.changed_since(SLICE, Seq(after), 0, usize::MAX).await;
        for block in 0..BLOCKS {
            let told = found.iter().find(|(changed, _, _)| *changed == block);
            let told = told.map(|(_, _, seq)| seq.0);
            let newest = promise.newest(through, block);
            let newest = newest.filter(|(seq, _)| *seq > after);
            // A zero over what was never written need not be told of.
            let spared = newest.is_none_or(|(_, had_data)| !had_data);
            if told != newest.map(|(seq, _)| seq) && !(told.is_none() && spared) {
                return Err(format!(
                    "block {block} after {after} at {through}{when}: {told:?}, not {newest:?}"
                ));
            }
        }
    }
    Ok(())
}

/// Once everything is at home, the blocks that are not zero take space and nothing else does.
async fn judge_space(store: &Store, promise: &Promise) -> Result<(), String> {
    store.audit_home().await?;
    let through = promise.acknowledged;
    let written = (0..BLOCKS).filter(|block| promise.fill(through, *block) != 0);
    let wanted = (written.count() * BLOCK_BYTES) as u64;
    let used = store.usage().home_used_bytes;
    if used != wanted {
        return Err(format!("{used} bytes of the home are used, not {wanted}"));
    }
    Ok(())
}

/// Whether every block has room that the journal holds data for.
pub(super) fn is_claimed_what_is_held(store: &Store, promise: &Promise) -> Result<(), String> {
    let stable = store.stable(SLICE).0;
    for block in 0..BLOCKS {
        let coming = promise.has_data_for(block, stable);
        let is_data = coming || promise.fill(stable, block) != 0;
        if is_data && !store.has_space_for(SLICE, block, 1) {
            return Err(format!("block {block} was promised no room"));
        }
    }
    Ok(())
}

/// Whether these are the bytes of a block that was filled so.
pub(super) fn is_block(bytes: &[u8], fill: u8) -> bool {
    bytes == filled(fill)
}
