//! One store under crashes, power cuts and failing disks, against a model of its promises.
//!
//! Each slice has a driver that appends records, raises the stable point, truncates, reads, and
//! removes the slice now and then.
//! Oracles, after every start and in between: every acknowledged record is found, with its
//! contents; nothing is found that was not submitted; nothing voided comes back; a block reads as
//! its newest stable record says, wherever it lives by now.
//!
//! In a quarter of the seeds the home lies behind 20 TiB of a sparse disk, so that its pages have
//! numbers beyond 32 bits.
//!
//! In half of the seeds the journal lies on a second, faster disk with faults of its own. When all
//! is over, that disk is missing, or another store's is in its place: the store must refuse to
//! open, and hold everything once its own disk is back.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use holdfast_runtime::{NodeId, Runtime};
use holdfast_store::{
    Body, OperationId, Record, SliceKey, Store, StoreBounds, StoreError, StoreOptions, View,
};
use holdfast_wire::Seq;

use crate::disk::Detached;
use crate::faults::FaultClass;
use crate::faults::compound::Compound;
use crate::faults::nemesis::{Nemesis, NemesisOptions, Surroundings};
use crate::oracle::content::{self, BLOCK_BYTES, BlockAddress, Value};
use crate::report::{Failure, SeedResult};
use crate::runner::{Checked, Scenario, run_seed};
use crate::simulation::{Machine, Options, Simulation};
use crate::trace::{Step, TraceText};

/// The scenario.
#[derive(Clone, Copy, Debug)]
pub struct StoreCrashes;

const NODE: NodeId = NodeId(1);
const JOURNAL: &str = "journal";
const SLICES: u32 = 2;
const SLICE_BLOCKS: u32 = 2_048;
/// Blocks in use: few, so that they are overwritten, and in two extents.
const BLOCKS: [u32; 2] = [0, 500];
const BLOCKS_EACH: u32 = 24;
const OPTIONS: StoreOptions = StoreOptions {
    identity: *b"simulated-store!",
    journal_bytes: 1 << 20,
    home_bytes: 16 << 20,
    home_preallocated: false,
    slice_blocks: SLICE_BLOCKS,
    bounds: StoreBounds::SERVICE,
};
/// Behind so many bytes of a sparse disk the pages of a home have numbers beyond 32 bits.
const BEYOND_32_BITS: u64 = 20 << 40;
const DISTURBED_FOR: Duration = Duration::from_secs(8);

impl Scenario for StoreCrashes {
    fn name(&self) -> &'static str {
        "store"
    }

    fn run(&self, seed: u64, trace: TraceText) -> SeedResult {
        run_seed(
            Options {
                trace,
                ..Options::new(seed)
            },
            play,
        )
    }
}

/// What the store of one slice must hold.
#[derive(Default)]
struct Model {
    /// Submitted records; the sequence number is the index plus one.
    records: Vec<Submitted>,
    /// Acknowledged up to here.
    durable: u64,
    stable: u64,
    /// A truncation to here was begun and not answered.
    truncating: Option<u64>,
    /// A removal was begun and not answered.
    removing: bool,
}

#[derive(Clone, Copy, Debug)]
struct Submitted {
    view: u64,
    first_block: u32,
    blocks: u32,
    /// The first block's value; zero for a record of zeroes.
    value: u64,
}

struct Scene {
    simulation: Simulation,
    models: Vec<RefCell<Model>>,
    next_value: Cell<u64>,
    options: StoreOptions,
    checks: Cell<u64>,
    starts: Cell<u64>,
    objection: RefCell<Option<Failure>>,
}

async fn play(simulation: Simulation) -> Result<Checked, Failure> {
    simulation.add_host(NODE);
    let second_disk = simulation.random("second disk").chance(500_000);
    let random = simulation.random("bounds");
    let mut options = OPTIONS;
    if random.chance(700_000) {
        options.bounds.facts_log_bytes = random.between(0, 10) * 4096;
        options.bounds.facts_at_once = random.between(2, 6) as usize;
    }
    let lies_high = simulation.random("home").chance(250_000);
    if lies_high {
        options.bounds.home_segments_at = BEYOND_32_BITS;
        options.home_bytes += BEYOND_32_BITS;
    }
    if second_disk {
        simulation.disks(NODE).put_on_second_device(JOURNAL);
    }
    let scene = Rc::new(Scene {
        simulation: simulation.clone(),
        models: (0..SLICES).map(|_| RefCell::default()).collect(),
        next_value: Cell::new(1),
        options,
        checks: Cell::new(0),
        starts: Cell::new(0),
        objection: RefCell::default(),
    });
    let starter = {
        let scene = scene.clone();
        Rc::new(move |node| {
            let scene = scene.clone();
            let simulation = scene.simulation.clone();
            simulation.start(node, |machine| scene.live(machine));
        })
    };
    starter(NODE);
    let mut options = NemesisOptions::everyday(1);
    let wanted = [
        FaultClass::Crash,
        FaultClass::CrashAtPoll,
        FaultClass::PowerCut,
        FaultClass::TornWrite,
        FaultClass::LostUnsyncedWrite,
        FaultClass::DiscardedRange,
        FaultClass::DiskError,
        FaultClass::SlowDisk,
    ];
    options.weights.retain(|class, _| wanted.contains(class));
    // An error for want of space would have no cause that this workload knows.
    options.compounds.remove(&Compound::DiskFillsAgain);
    options.pause = (Duration::from_millis(5), Duration::from_millis(800));
    options.length = (Duration::from_millis(5), Duration::from_millis(500));
    options.restart_after = Duration::from_millis(50);
    let surroundings = Surroundings::plain(starter.clone());
    Nemesis::new(simulation.clone(), options, surroundings)
        .run(DISTURBED_FOR)
        .await;
    simulation.cut_power(&[NODE]);
    simulation.restore_power(NODE);
    if second_disk {
        let own = scene.open_without_journal().await?;
        scene.open_with_a_foreign_journal().await?;
        simulation.disks(NODE).attach(own);
    }
    let before = scene.starts.get();
    starter(NODE);
    simulation.runtime().sleep(Duration::from_secs(5)).await;
    if let Some(objection) = scene.objection.take() {
        return Err(objection);
    }
    if scene.starts.get() == before {
        return Err(Failure::oracle(
            "recovery",
            "the store did not open in 5 s on healthy disks",
        ));
    }
    let figures = vec![
        ("store starts", scene.starts.get()),
        ("second disks", u64::from(second_disk)),
        ("homes beyond 16 TiB", u64::from(lies_high)),
    ];
    Ok(Checked {
        operations: scene.checks.get(),
        figures,
    })
}

impl Scene {
    async fn live(self: Rc<Self>, machine: Machine) {
        let Machine {
            runtime,
            directory,
            links,
        } = machine;
        let view = links.local_incarnation().0;
        let store = match Store::open(runtime.clone(), directory, self.options).await {
            Ok((store, report)) => {
                self.say(|| format!("opened: {report:?}"));
                store
            }
            Err(error) => return self.failed(&error),
        };
        self.starts.set(self.starts.get() + 1);
        // Now and then everything has to go home at once, as if the node were about to be stopped.
        let is_hasty = runtime.random_below(4) == 0;
        let hasty = async {
            match is_hasty {
                true => store.flush().await,
                false => Ok(()),
            }
        };
        let drivers = (0..SLICES).map(|slice| {
            let driver = Driver {
                scene: self.clone(),
                runtime: runtime.clone(),
                store: store.clone(),
                key: SliceKey { volume: 1, slice },
                view,
            };
            driver.drive()
        });
        let (flushed, ended) = futures::join!(hasty, join_all(drivers));
        for ended in ended.into_iter().chain([flushed]) {
            if let Err(error) = ended {
                self.failed(&error);
            }
        }
    }

    /// The second disk is missing: what a store makes of that.
    async fn open_without_journal(&self) -> Result<Detached, Failure> {
        let own = self.simulation.disks(NODE).detach(JOURNAL);
        let own = own.ok_or_else(|| Failure::oracle("second disk", "there is no journal"))?;
        match self.open_in_vain(self.options).await {
            Some(StoreError::Lost { area: JOURNAL, .. }) => Ok(own),
            other => Err(Failure::oracle(
                "second disk",
                format!("without its journal the store ends with {other:?}"),
            )),
        }
    }

    /// The journal of a store that was made on the same host meanwhile.
    async fn open_with_a_foreign_journal(&self) -> Result<(), Failure> {
        let disks = self.simulation.disks(NODE);
        let rest = ["facts", "home"].map(|area| disks.detach(area));
        disks.detach(JOURNAL);
        let other = StoreOptions {
            identity: *b"some other store",
            ..self.options
        };
        let made = self.open_in_vain(other).await;
        for area in rest.into_iter().flatten() {
            disks.attach(area);
        }
        let found = self.open_in_vain(self.options).await;
        match (made, found) {
            (None, Some(StoreError::Foreign { area: JOURNAL, .. })) => Ok(()),
            outcome => Err(Failure::oracle(
                "second disk",
                format!("with the journal of another store it ends with {outcome:?}"),
            )),
        }
    }

    /// Opens a store, and ends its process; why it could not be opened, if so.
    async fn open_in_vain(&self, options: StoreOptions) -> Option<StoreError> {
        let outcome: Rc<RefCell<Option<StoreError>>> = Rc::default();
        let told = outcome.clone();
        self.simulation.start(NODE, |machine| async move {
            let opened = Store::open(machine.runtime, machine.directory, options).await;
            *told.borrow_mut() = opened.err();
            std::future::pending::<()>().await;
        });
        self.simulation
            .runtime()
            .sleep(Duration::from_secs(2))
            .await;
        self.simulation.kill(NODE);
        outcome.take()
    }

    /// An error is honest if some disk operation was made to fail.
    fn failed(&self, error: &StoreError) {
        self.say(|| format!("the store fails: {error}"));
        if self.simulation.faults().get(FaultClass::DiskError) == 0 {
            self.object("honesty", format!("an error without a cause: {error}"));
        }
    }

    fn object(&self, oracle: &'static str, what: String) {
        self.say(|| format!("OBJECTION: {oracle}: {what}"));
        self.objection
            .borrow_mut()
            .get_or_insert(Failure::oracle(oracle, what));
    }

    fn say(&self, words: impl FnOnce() -> String) {
        self.simulation
            .note(Step::Operation, 0, self.next_value.get(), words);
    }
}

/// One slice's life in one process.
struct Driver {
    scene: Rc<Scene>,
    runtime: Runtime,
    store: Rc<Store>,
    key: SliceKey,
    view: u64,
}

impl Driver {
    async fn drive(self) -> Result<(), StoreError> {
        self.check_recovery().await?;
        while self.scene.objection.borrow().is_none() {
            match self.runtime.random_below(20) {
                0..12 => self.append().await?,
                12..15 => self.raise_stable(),
                15..19 => self.check_some().await?,
                _ if self.runtime.random_below(4) == 0 => self.remove().await?,
                _ => self.truncate().await?,
            }
            if self.runtime.random_below(8) == 0 {
                let pause = Duration::from_micros(self.runtime.random_below(12_000));
                self.runtime.sleep(pause).await;
            }
        }
        Ok(())
    }

    fn model(&self) -> std::cell::RefMut<'_, Model> {
        self.scene.models[self.key.slice as usize].borrow_mut()
    }

    async fn check_recovery(&self) -> Result<(), StoreError> {
        let last = self.store.last_seq(self.key).0;
        {
            let mut model = self.model();
            if std::mem::take(&mut model.removing) && last == 0 {
                *model = Model::default();
            }
            let submitted = model.records.len() as u64;
            let least = model
                .truncating
                .map_or(model.durable, |keep| keep.min(model.durable));
            if last < least || last > submitted {
                let what = format!(
                    "{:?} ends at {last}, not in {least}..={submitted}",
                    self.key
                );
                self.scene.object("durability", what);
            }
            if let Some(keep) = model.truncating.take()
                && last > keep
                && last < model.durable
            {
                let what = format!("{:?}: truncated to {keep} in part: {last}", self.key);
                self.scene.object("atomic truncation", what);
            }
            model.records.truncate(last as usize);
            model.durable = last;
            model.stable = model.stable.min(last);
            let known = self.store.stable(self.key).0;
            if known > model.stable {
                let what = format!("{:?} takes {known} for stable", self.key);
                self.scene.object("stable point", what);
            }
        }
        for entry in self.store.tail(self.key) {
            self.check_record(entry.view, entry.seq).await?;
        }
        let stable = self.model().stable;
        self.store.set_stable(self.key, Seq(stable));
        for first in BLOCKS {
            self.check_blocks(first, BLOCKS_EACH).await?;
        }
        Ok(())
    }

    async fn check_record(&self, view: View, seq: Seq) -> Result<(), StoreError> {
        let found = self.store.read_record(self.key, view, seq).await?;
        let submitted = self.model().records.get(seq.0 as usize - 1).copied();
        self.scene.checks.set(self.scene.checks.get() + 1);
        let right = match (&found, submitted) {
            (Some(found), Some(submitted)) => *found == self.record(seq.0, submitted, found.stable),
            (None, _) | (_, None) => false,
        };
        if !right {
            let what = format!(
                "{:?} holds {found:?} as {seq:?}, not {submitted:?}",
                self.key
            );
            self.scene.object("records", what);
        }
        Ok(())
    }

    async fn append(&self) -> Result<(), StoreError> {
        let count = 1 + self.runtime.random_below(4);
        let mut appended = Vec::new();
        for _ in 0..count {
            let blocks = 1 + self.runtime.random_below(6) as u32;
            let base = BLOCKS[self.runtime.random_below(BLOCKS.len() as u64) as usize];
            let within = self
                .runtime
                .random_below(u64::from(BLOCKS_EACH - blocks + 1)) as u32;
            let zero = self.runtime.random_below(6) == 0;
            let value = if zero { 0 } else { self.scene.next_value.get() };
            self.scene
                .next_value
                .set(self.scene.next_value.get() + u64::from(blocks));
            let first_block = base + within;
            let submitted = Submitted {
                view: self.view,
                first_block,
                blocks,
                value,
            };
            let (seq, stable) = {
                let mut model = self.model();
                model.records.push(submitted);
                (model.records.len() as u64, model.stable)
            };
            let record = self.record(seq, submitted, Seq(stable));
            let append = self.store.append(vec![record]);
            appended.push(async move {
                append.await?;
                let mut model = self.model();
                model.durable = model.durable.max(seq);
                Ok(())
            });
        }
        let mut appended = std::pin::pin!(join_all(appended));
        loop {
            match self
                .runtime
                .timeout(Duration::from_millis(5), &mut appended)
                .await
            {
                Some(results) => return results.into_iter().collect(),
                // Perhaps unstable records fill the ring.
                None => self.raise_stable_to_durable(),
            }
        }
    }

    fn raise_stable_to_durable(&self) {
        let durable = {
            let mut model = self.model();
            model.stable = model.durable;
            model.stable
        };
        self.store.set_stable(self.key, Seq(durable));
    }

    fn raise_stable(&self) {
        let stable = {
            let mut model = self.model();
            let rise = model.durable - model.stable;
            model.stable += self.runtime.random_below(rise + 1);
            model.stable
        };
        self.store.set_stable(self.key, Seq(stable));
    }

    async fn truncate(&self) -> Result<(), StoreError> {
        let keep = {
            let mut model = self.model();
            let unstable = model.durable - model.stable;
            let keep = model.stable + self.runtime.random_below(unstable + 1);
            model.truncating = Some(keep);
            keep
        };
        self.store.truncate(self.key, Seq(keep)).await?;
        let mut model = self.model();
        model.truncating = None;
        model.records.truncate(keep as usize);
        model.durable = keep;
        Ok(())
    }

    /// The slice goes, and begins anew.
    async fn remove(&self) -> Result<(), StoreError> {
        self.model().removing = true;
        self.store.remove_slices(vec![self.key]).await?;
        *self.model() = Model::default();
        let last = self.store.last_seq(self.key);
        if last > Seq(0) {
            let what = format!("{:?} ends at {last:?} after its removal", self.key);
            self.scene.object("removal", what);
        }
        Ok(())
    }

    async fn check_some(&self) -> Result<(), StoreError> {
        let base = BLOCKS[self.runtime.random_below(BLOCKS.len() as u64) as usize];
        let blocks = 1 + self.runtime.random_below(u64::from(BLOCKS_EACH)) as u32;
        self.check_blocks(base, blocks).await
    }

    /// Reads blocks and compares them with the newest stable records.
    async fn check_blocks(&self, first: u32, blocks: u32) -> Result<(), StoreError> {
        let data = self.store.read(self.key, first, blocks).await?;
        for (block, bytes) in (first..).zip(data.chunks_exact(BLOCK_BYTES)) {
            let expected = self.expected(block);
            self.scene.checks.set(self.scene.checks.get() + 1);
            let found = content::decode(bytes, self.address(block));
            if found != Ok(expected) {
                let stable = self.model().stable;
                let what = format!(
                    "block {block} of {:?} is {found:?} at {stable}, not {expected:?}",
                    self.key
                );
                self.scene.object("contents", what);
            }
        }
        Ok(())
    }

    fn expected(&self, block: u32) -> Value {
        let model = self.model();
        let stable = &model.records[..model.stable as usize];
        let newest = stable.iter().rev().find(|record| {
            (record.first_block..record.first_block + record.blocks).contains(&block)
        });
        match newest {
            Some(Submitted { value: 0, .. }) | None => Value::ZERO,
            Some(record) => Value(record.value + u64::from(block - record.first_block)),
        }
    }

    fn record(&self, seq: u64, submitted: Submitted, stable: Seq) -> Record {
        let Submitted {
            view,
            first_block,
            blocks,
            value,
        } = submitted;
        let body = match value {
            0 => Body::Zero {
                first_block,
                blocks,
            },
            value => Body::Write {
                first_block,
                data: self.data(first_block, blocks, value),
            },
        };
        let operation = OperationId {
            origin: view,
            number: seq,
        };
        Record {
            slice: self.key,
            view: View(view),
            seq: Seq(seq),
            stable,
            operation,
            body,
        }
    }

    fn data(&self, first_block: u32, blocks: u32, value: u64) -> Bytes {
        let mut data = BytesMut::zeroed(blocks as usize * BLOCK_BYTES);
        for (offset, bytes) in (0_u32..).zip(data.chunks_exact_mut(BLOCK_BYTES)) {
            let address = self.address(first_block + offset);
            content::fill(bytes, address, Value(value + u64::from(offset)));
        }
        data.freeze()
    }

    fn address(&self, block: u32) -> BlockAddress {
        let slice = u64::from(self.key.slice) << 32;
        BlockAddress {
            volume: self.key.volume,
            block: slice | u64::from(block),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::{Amount, Plan, run_seeds};

    #[test]
    fn a_store_keeps_its_promises_through_crashes_at_every_moment() {
        let plan = Plan {
            start: 0,
            amount: Amount::Seeds(10),
            threads: 2,
            trace: TraceText::Off,
            repeat_every: 5,
            stop_at_failure: false,
            bug: None,
        };
        let report = run_seeds(&StoreCrashes, plan, |_, _| {});
        assert!(report.passed(), "{}", report.to_table());
        let second_disks = report.figures["second disks"];
        assert!(
            (1..10).contains(&second_disks),
            "{second_disks} of 10 journals lay on a second disk"
        );
        for class in [
            FaultClass::Crash,
            FaultClass::CrashAtPoll,
            FaultClass::PowerCut,
            FaultClass::TornWrite,
            FaultClass::LostUnsyncedWrite,
            FaultClass::DiscardedRange,
        ] {
            assert!(
                report.faults[&class] > 0,
                "{class} never fired:\n{}",
                report.to_table()
            );
        }
    }
}
