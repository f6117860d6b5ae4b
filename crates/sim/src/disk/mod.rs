//! Simulated disks: [`Directory`] and [`Disk`] over images that survive their process.
//!
//! Operations take virtual time and may overtake one another. An operation belongs to the
//! process that issued it: if the process dies first, the operation is settled by the crash
//! (see [`image`]) and nobody hears of it. Damage at rest obeys a [`DamagePolicy`], so that a
//! scenario which checks durability never loses its last good copy to the simulator.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use futures::future::LocalBoxFuture;
use holdfast_runtime::{Allocation, Directory, Disk, DiskError, DiskOptions, NodeId, PAGE_BYTES};
use tokio::sync::oneshot;

use crate::executor::{Executor, ProcessId};
use crate::faults::{FaultClass, FaultCounts};
use crate::random::Random;
use crate::trace::Step;

mod conditions;
pub mod image;
mod operations;
#[cfg(test)]
mod tests;

pub use conditions::{Damage, DamagePolicy, DiskTiming, Moment};
use image::Image;
pub use image::{CrashDamage, SECTOR_BYTES};
use operations::SimulatedDisk;

/// The disks of one host.
pub struct HostDisks {
    node: NodeId,
    executor: Rc<Executor>,
    counts: Rc<FaultCounts>,
    random: Random,
    timing: DiskTiming,
    /// Whether anything is taken back that is discarded.
    takes_back: bool,
    areas: RefCell<BTreeMap<String, Rc<Area>>>,
    policy: RefCell<DamagePolicy>,
    /// Areas on the second device.
    elsewhere: RefCell<BTreeSet<String>>,
    health: [Health; 2],
    armed: Cell<Option<Damage>>,
    moment: RefCell<Option<Ambush>>,
    /// What was scheduled before the last healing does not happen any more.
    healings: Rc<Cell<u64>>,
}

/// How a device is at the moment.
#[derive(Debug)]
struct Health {
    slow_factor: Cell<u64>,
    error_ppm: Cell<u32>,
    /// Operations that have failed.
    errors: Cell<u64>,
    full: Cell<bool>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            slow_factor: Cell::new(1),
            error_ppm: Cell::new(0),
            errors: Cell::new(0),
            full: Cell::new(false),
        }
    }
}

/// An area that was taken away from its host.
pub struct Detached(Rc<Area>);

/// How much faster the second device is: flash or memory for a journal.
const SECOND_DEVICE_FASTER: u64 = 8;

/// The longest that an operation takes: more than any time limit of those who wait for it. Healing
/// a disk does not end what is in flight, and what is to come right afterwards must not wait for
/// ever.
const SLOWEST_NS: u64 = 12_000_000_000;

/// How many hosts have disks that know no discard.
const KEEPS_ALL_PPM: u32 = 125_000;

/// What to do when a moment comes.
type Ambush = (Moment, Box<dyn FnOnce()>);

struct Area {
    name: String,
    preallocated: Cell<bool>,
    image: RefCell<Image>,
    /// The pages written last and when, in virtual time, oldest first.
    recent: RefCell<VecDeque<(u64, u64)>>,
}

/// Pages remembered per area.
const RECENT_PAGES: usize = 1_024;
/// The newest writes are spared: a log cannot tell damage to its very last entry from a write
/// that never completed, unless it has gone on, or said since that the entry was complete.
const SPARED_NS: u64 = 10_000_000;
/// Damage prefers pages written this long before the newest: a log still needs them.
const LATELY_NS: u64 = 700_000_000;

impl HostDisks {
    pub(crate) fn new(
        node: NodeId,
        executor: Rc<Executor>,
        counts: Rc<FaultCounts>,
        random: Random,
        timing: DiskTiming,
    ) -> Rc<Self> {
        let takes_back = !random.fork("discard").chance(KEEPS_ALL_PPM);
        Rc::new(Self {
            node,
            executor,
            counts,
            random,
            timing,
            takes_back,
            areas: RefCell::default(),
            policy: RefCell::default(),
            elsewhere: RefCell::default(),
            health: [Health::default(), Health::default()],
            armed: Cell::new(None),
            moment: RefCell::default(),
            healings: Rc::default(),
        })
    }

    /// The directory as one process sees it.
    pub(crate) fn directory(self: &Rc<Self>, process: ProcessId) -> Rc<dyn Directory> {
        Rc::new(SimulatedDirectory {
            disks: self.clone(),
            process,
        })
    }

    /// Says where damage at rest may happen.
    pub fn set_policy(&self, policy: DamagePolicy) {
        *self.policy.borrow_mut() = policy;
    }

    /// Whether the policy leaves room for more damage.
    pub fn may_be_damaged(&self) -> bool {
        let policy = self.policy.borrow();
        policy.budget > 0 && !policy.areas.is_empty()
    }

    /// Puts an area on a second device, faster and with faults of its own.
    pub fn put_on_second_device(&self, area: &str) {
        self.elsewhere.borrow_mut().insert(area.to_owned());
    }

    /// Takes an area away, as with the device that it lies on.
    pub fn detach(&self, area: &str) -> Option<Detached> {
        self.areas.borrow_mut().remove(area).map(Detached)
    }

    /// Brings an area back, in place of whatever was made there meanwhile.
    pub fn attach(&self, area: Detached) {
        let name = area.0.name.clone();
        self.areas.borrow_mut().insert(name, area.0);
    }

    /// The devices that a fault befalls: one or both, if there are two.
    fn befallen(&self) -> &[Health] {
        if self.elsewhere.borrow().is_empty() {
            return &self.health[..1];
        }
        match self.random.below(3) {
            0 => &self.health[..1],
            1 => &self.health[1..],
            _ => &self.health[..],
        }
    }

    fn health_of(&self, area: &str) -> &Health {
        &self.health[usize::from(self.elsewhere.borrow().contains(area))]
    }

    /// Lets every operation of a device take `factor` times as long; 1 makes all healthy.
    pub fn set_slow_factor(&self, factor: u64) {
        let devices = if factor <= 1 {
            &self.health[..]
        } else {
            self.befallen()
        };
        for device in devices {
            device.slow_factor.set(factor.max(1));
        }
    }

    /// Lets operations of a device report errors with this probability; 0 makes all healthy.
    pub fn set_error_ppm(&self, parts_per_million: u32) {
        let devices = match parts_per_million {
            0 => &self.health[..],
            _ => self.befallen(),
        };
        for device in devices {
            device.error_ppm.set(parts_per_million);
        }
    }

    /// Lets every new allocation on a device fail; `false` makes all healthy.
    pub fn set_full(&self, full: bool) {
        let devices = if full {
            self.befallen()
        } else {
            &self.health[..]
        };
        for device in devices {
            device.full.set(full);
        }
    }

    /// Whether an operation has ever failed, but for want of space.
    pub fn have_failed(&self) -> bool {
        self.health.iter().any(|device| device.errors.get() > 0)
    }

    /// Damages data at rest, or arms a fault of the next write, if the policy allows it and
    /// there is something to damage.
    pub fn damage(&self, damage: Damage) -> bool {
        let allowed: Vec<Rc<Area>> = {
            let policy = self.policy.borrow();
            if policy.budget == 0 {
                return false;
            }
            let areas = self.areas.borrow();
            let at_rest = match damage {
                Damage::FlipBits | Damage::Unreadable => &policy.at_rest[..],
                Damage::LoseNextWrite
                | Damage::MisdirectNextWrite
                | Damage::StaleRead
                | Damage::LieAtNextSync => &[],
            };
            policy
                .areas
                .iter()
                .chain(at_rest)
                .filter_map(|name| areas.get(name).cloned())
                .collect()
        };
        let Some(area) = self.random.pick(&allowed) else {
            return false;
        };
        match damage {
            Damage::FlipBits | Damage::Unreadable | Damage::StaleRead => {
                let Some(page) = self.choose_page(area) else {
                    return false;
                };
                self.damage_page(area, page, damage);
                self.policy.borrow_mut().budget -= 1;
            }
            Damage::LoseNextWrite | Damage::MisdirectNextWrite | Damage::LieAtNextSync => {
                self.armed.set(Some(damage));
            }
        }
        true
    }

    /// Calls `action` while the next write or sync is in flight.
    pub fn at_next(&self, moment: Moment, action: impl FnOnce() + 'static) {
        *self.moment.borrow_mut() = Some((moment, Box::new(action)));
    }

    /// The process of this host was killed.
    pub(crate) fn crash_process(&self) {
        for area in self.areas.borrow().values() {
            let damage = area.image.borrow_mut().crash_process(&self.random);
            self.count(damage);
        }
    }

    /// The power of this host was cut.
    pub(crate) fn crash_power(&self) {
        for area in self.areas.borrow().values() {
            let damage = area.image.borrow_mut().crash_power(&self.random);
            self.count(damage);
        }
    }

    /// Undoes slowness, errors, fullness, armed faults and [`HostDisks::at_next`]. Damage at rest
    /// stays.
    pub fn heal(&self) {
        self.set_slow_factor(1);
        self.set_error_ppm(0);
        self.set_full(false);
        self.armed.set(None);
        let forgotten = self.moment.take();
        drop(forgotten);
        self.healings.set(self.healings.get() + 1);
    }

    /// The run is over. Objects of killed processes may live on in cycles of their own; the
    /// contents of their disks shall not.
    pub(crate) fn discard(&self) {
        for area in std::mem::take(&mut *self.areas.borrow_mut()).into_values() {
            *area.image.borrow_mut() = Image::new(0);
        }
    }

    fn count(&self, damage: CrashDamage) {
        self.counts.add(FaultClass::TornWrite, damage.torn_writes);
        self.counts
            .add(FaultClass::LostUnsyncedWrite, damage.lost_pages);
    }

    /// A page written lately, where damage meets a recovery, or any page.
    fn choose_page(&self, area: &Area) -> Option<u64> {
        let recent = area.recent.borrow();
        let newest_ns = recent.back().map_or(0, |(at_ns, _)| *at_ns);
        let old_enough = |at_ns: u64| at_ns + SPARED_NS < newest_ns;
        let spared: Vec<u64> = recent
            .iter()
            .filter(|(at, _)| !old_enough(*at))
            .map(|(_, page)| *page)
            .collect();
        let mut candidates: Vec<u64> = recent
            .iter()
            .filter(|(at, _)| old_enough(*at) && at + LATELY_NS >= newest_ns)
            .map(|(_, page)| *page)
            .collect();
        if candidates.is_empty() || self.random.chance(300_000) {
            candidates = area.image.borrow().written_pages();
        }
        let image = area.image.borrow();
        candidates.retain(|page| !spared.contains(page) && !image.is_discarded(*page));
        self.random.pick(&candidates).copied()
    }

    fn damage_page(&self, area: &Area, page: u64, damage: Damage) {
        let class = match damage {
            Damage::FlipBits => {
                let sector = self.random.below((PAGE_BYTES / SECTOR_BYTES) as u64) as usize;
                let bits: Vec<usize> = (0..self.random.between(1, 8))
                    .map(|_| self.random.below(SECTOR_BYTES as u64 * 8) as usize)
                    .collect();
                area.image.borrow_mut().alter(page, |bytes| {
                    for bit in &bits {
                        bytes[sector * SECTOR_BYTES + bit / 8] ^= 1 << (bit % 8);
                    }
                });
                FaultClass::Corruption
            }
            Damage::Unreadable => {
                area.image.borrow_mut().make_unreadable(page);
                FaultClass::UnreadablePage
            }
            Damage::StaleRead => {
                let times = [1, 3, u32::MAX][self.random.below(3) as usize];
                if !area.image.borrow_mut().make_stale(page, times) {
                    return;
                }
                FaultClass::StaleRead
            }
            Damage::LoseNextWrite | Damage::MisdirectNextWrite | Damage::LieAtNextSync => return,
        };
        self.counts.fired(class);
        self.say(Step::Fault, page, || {
            format!("{class} of {} page {page}", area.name)
        });
    }

    fn delay(&self, area: &str, fixed_ns: u64, pages: u64) -> u64 {
        let factor = self.health_of(area).slow_factor.get();
        if factor > 1 {
            self.counts.fired(FaultClass::SlowDisk);
        }
        let faster = match self.elsewhere.borrow().contains(area) {
            true => SECOND_DEVICE_FASTER,
            false => 1,
        };
        let healthy_ns = fixed_ns + pages * self.timing.ns_per_page;
        (self.random.tailed(healthy_ns / faster) * factor).min(SLOWEST_NS)
    }

    /// Says that an operation of this kind will be in flight for `delay_ns`.
    fn reached(&self, reached: Moment, delay_ns: u64) {
        let mut moment = self.moment.borrow_mut();
        if let Some((wanted, action)) = moment.take() {
            if wanted == reached {
                let (healings, before) = (self.healings.clone(), self.healings.get());
                let unless_healed = move || {
                    if healings.get() == before {
                        action();
                    }
                };
                self.executor
                    .call_after(self.random.below(delay_ns.max(1)), unless_healed);
            } else {
                *moment = Some((wanted, action));
            }
        }
    }

    fn fails(&self, area: &str) -> bool {
        let health = self.health_of(area);
        let fails = self.random.chance(health.error_ppm.get());
        if fails {
            health.errors.set(health.errors.get() + 1);
            self.counts.fired(FaultClass::DiskError);
        }
        fails
    }

    fn say(&self, step: Step, detail: u64, words: impl FnOnce() -> String) {
        let (now_ns, node) = (self.executor.now_ns(), self.node);
        self.executor
            .trace()
            .event(now_ns, step, node.0, detail, || {
                format!("node {node}: {}", words())
            });
    }

    /// Runs `act` after `delay_ns` unless the process has died, and hands out its result.
    fn operate<T: 'static>(
        self: &Rc<Self>,
        process: ProcessId,
        delay_ns: u64,
        act: impl FnOnce(&Rc<Self>) -> T + 'static,
    ) -> LocalBoxFuture<'static, T> {
        let (sender, receiver) = oneshot::channel();
        let disks = self.clone();
        self.executor.call_after(delay_ns, move || {
            if disks.executor.is_alive(process) {
                // The caller may have lost interest; the operation has happened all the same.
                let _ = sender.send(act(&disks));
            }
        });
        Box::pin(async move {
            match receiver.await {
                Ok(result) => result,
                // Only a dead process' operation goes unanswered, and it is polled no more.
                Err(_) => std::future::pending().await,
            }
        })
    }
}

struct SimulatedDirectory {
    disks: Rc<HostDisks>,
    process: ProcessId,
}

impl Directory for SimulatedDirectory {
    fn open(
        &self,
        name: &str,
        options: DiskOptions,
    ) -> LocalBoxFuture<'static, Result<Rc<dyn Disk>, DiskError>> {
        assert!(
            options.size_bytes.is_multiple_of(PAGE_BYTES as u64),
            "an area of {} bytes is not whole pages",
            options.size_bytes
        );
        let (name, process) = (name.to_owned(), self.process);
        let delay_ns = self.disks.delay(&name, self.disks.timing.sync_ns, 0);
        self.disks.operate(process, delay_ns, move |disks| {
            disks.open(name, options, process)
        })
    }

    fn exists(&self, name: &str) -> bool {
        self.disks.areas.borrow().contains_key(name)
    }

    fn remove(&self, name: &str) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        let name = name.to_owned();
        let delay_ns = self.disks.delay(&name, self.disks.timing.sync_ns, 0);
        self.disks.operate(self.process, delay_ns, move |disks| {
            disks.areas.borrow_mut().remove(&name);
            Ok(())
        })
    }
}

impl HostDisks {
    fn open(
        self: &Rc<Self>,
        name: String,
        options: DiskOptions,
        process: ProcessId,
    ) -> Result<Rc<dyn Disk>, DiskError> {
        let existing = self.areas.borrow().get(&name).cloned();
        let size_now = existing
            .as_ref()
            .map_or(0, |area| area.image.borrow().size_bytes());
        let allocates = options.allocation != Allocation::Sparse && options.size_bytes > size_now;
        if self.health_of(&name).full.get() && allocates {
            self.counts.fired(FaultClass::FullDisk);
            return Err(DiskError::Full {
                name,
                wanted_bytes: options.size_bytes,
            });
        }
        let area = existing.unwrap_or_else(|| {
            Rc::new(Area {
                name: name.clone(),
                preallocated: Cell::new(false),
                image: RefCell::new(Image::new(0)),
                recent: RefCell::default(),
            })
        });
        area.image.borrow_mut().grow(options.size_bytes);
        area.preallocated
            .set(area.preallocated.get() || options.allocation != Allocation::Sparse);
        self.areas.borrow_mut().insert(name, area.clone());
        Ok(Rc::new(SimulatedDisk {
            disks: self.clone(),
            area,
            process,
            durable_writes: options.durable_writes,
        }))
    }
}
