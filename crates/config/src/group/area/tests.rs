//! Halves that double, cut off at each write of it.

use std::cell::RefCell;
use std::rc::Rc;

use futures::FutureExt;
use futures::executor::block_on;
use futures::future::LocalBoxFuture;
use holdfast_runtime::{Buffer, Directory, Disk, DiskError, DiskOptions, NodeId};

use super::*;

const NODE: NodeId = NodeId(3);
const FIRST: u64 = 64 << 10;
const SIZES: HalfSizes = HalfSizes {
    first: FIRST,
    largest: 16 * FIRST,
};
const SECTOR: usize = 512;

/// A disk in memory that notes what was done to it, in order.
#[derive(Clone, Default)]
struct Memory(Rc<RefCell<Noted>>);

#[derive(Clone, Default)]
struct Noted {
    bytes: Vec<u8>,
    steps: Vec<Step>,
    /// No larger than this.
    size_max: Option<u64>,
}

#[derive(Clone)]
enum Step {
    Grown(usize),
    Written(usize, Vec<u8>),
}

impl Step {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Grown(size) => bytes.resize(*size, 0),
            Self::Written(offset, data) => {
                bytes[*offset..offset + data.len()].copy_from_slice(data);
            }
        }
    }

    /// Only some of it: every sector of which `kept` says so.
    fn tear(&self, bytes: &mut Vec<u8>, kept: impl Fn(usize) -> bool) {
        match self {
            // A file's length runs behind what was written of it.
            Self::Grown(size) => {
                bytes.resize((bytes.len() + size) / 2 / PAGE_BYTES * PAGE_BYTES, 0)
            }
            Self::Written(offset, data) => {
                let sectors = data.chunks(SECTOR).enumerate();
                for (number, sector) in sectors.filter(|(number, _)| kept(*number)) {
                    let at = offset + number * SECTOR;
                    bytes[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
    }
}

impl Memory {
    fn of(bytes: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.0.borrow_mut().bytes = bytes;
        disk
    }

    fn open(&self) -> Result<(Area, Option<Contents>), AreaError> {
        block_on(Area::open(Rc::new(self.clone()), NODE, SIZES))
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.borrow().bytes.clone()
    }

    fn take_steps(&self) -> Vec<Step> {
        std::mem::take(&mut self.0.borrow_mut().steps)
    }
}

impl Directory for Memory {
    fn open(
        &self,
        _name: &str,
        options: DiskOptions,
    ) -> LocalBoxFuture<'static, Result<Rc<dyn Disk>, DiskError>> {
        let opened = {
            let mut noted = self.0.borrow_mut();
            let size = options.size_bytes;
            if noted.size_max.is_some_and(|most| size > most) {
                Err(DiskError::Full {
                    name: AREA.to_owned(),
                    wanted_bytes: size,
                })
            } else {
                if size > noted.bytes.len() as u64 {
                    let step = Step::Grown(size as usize);
                    step.apply(&mut noted.bytes);
                    noted.steps.push(step);
                }
                Ok(Rc::new(self.clone()) as Rc<dyn Disk>)
            }
        };
        std::future::ready(opened).boxed_local()
    }

    fn exists(&self, _name: &str) -> bool {
        true
    }

    fn remove(&self, _name: &str) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        unreachable!("nobody removes the area")
    }
}

impl Disk for Memory {
    fn size_bytes(&self) -> u64 {
        self.0.borrow().bytes.len() as u64
    }

    fn read(&self, offset: u64, len: usize) -> LocalBoxFuture<'static, Result<Buffer, DiskError>> {
        let read = Buffer::padded_from(&self.0.borrow().bytes[offset as usize..][..len]);
        std::future::ready(Ok(read)).boxed_local()
    }

    fn write(&self, offset: u64, data: Buffer) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        let step = Step::Written(offset as usize, data.to_vec());
        let mut noted = self.0.borrow_mut();
        step.apply(&mut noted.bytes);
        noted.steps.push(step);
        std::future::ready(Ok(())).boxed_local()
    }

    fn sync(&self) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        std::future::ready(Ok(())).boxed_local()
    }
}

/// An image of so many bytes of which no page is zero.
fn image(length: u64, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8 ^ seed | 1).collect()
}

async fn replace(area: &mut Area, image: &[u8]) -> Result<(), AreaError> {
    let mut draft = area.draft(image.len() as u64, 0)?;
    draft.begin().await?;
    for part in image.chunks(10_000) {
        draft.image(part).await?;
    }
    area.commit(draft).await
}

fn contents(image: &[u8], records: &[&[u8]]) -> Contents {
    Contents {
        image: Bytes::copy_from_slice(image),
        records: records.iter().map(|record| record.to_vec()).collect(),
    }
}

/// An area that has grown and turned so often that each kind of step was met, with what it holds.
fn histories() -> Vec<(Memory, Area, Contents)> {
    let lengths: [&[u64]; 7] = [
        &[100],
        &[30_000],
        &[100, 200],
        &[100, 200, 30_000],
        &[100, 30_000],
        &[100, 30_000, 31_000, 32_000],
        &[100, 200, 70_000, 71_000],
    ];
    let histories = lengths.into_iter().map(|lengths| {
        let disk = Memory::default();
        let (mut area, none) = disk.open().expect("new");
        assert_eq!(none, None);
        let mut held = Contents::default();
        for (length, seed) in lengths.iter().zip(1..) {
            let bytes = image(*length, seed);
            block_on(replace(&mut area, &bytes)).expect("room");
            block_on(area.append(b"after")).expect("room");
            held = contents(&bytes, &[b"after"]);
        }
        (disk, area, held)
    });
    histories.collect()
}

#[test]
fn halves_double_when_the_image_needs_it_and_everything_is_found_again() {
    for (disk, mut area, held) in histories() {
        assert_eq!(disk.open().expect("readable").1, Some(held));
        for (length, half) in [
            (120_000, 8 * FIRST),
            (400_000, 16 * FIRST),
            (100, 16 * FIRST),
        ] {
            let bytes = image(length, 77);
            block_on(replace(&mut area, &bytes)).expect("room");
            assert_eq!(area.half_bytes(), half, "{length} bytes");
            assert_eq!(
                disk.bytes().len() as u64,
                2 * half,
                "nothing is left unused"
            );
            let found = disk.open().expect("readable").1;
            assert_eq!(found, Some(contents(&bytes, &[])));
        }
    }
}

#[test]
fn a_crash_at_each_write_of_the_growth_leaves_what_was_there_or_has_replaced_it() {
    for (disk, mut area, old) in histories() {
        for length in [250_000, 260_000] {
            let before = disk.bytes();
            disk.take_steps();
            let old = disk.open().expect("readable").1.or(Some(old.clone()));
            let bytes = image(length, 99);
            block_on(replace(&mut area, &bytes)).expect("room");
            let new = Some(contents(&bytes, &[]));
            let steps = disk.take_steps();
            let (mut whole, mut replaced) = (before, false);
            for (number, step) in steps.iter().enumerate() {
                for torn in 0..4 {
                    let mut cut = whole.clone();
                    match torn {
                        0 => {}
                        1 => step.tear(&mut cut, |sector| sector % 2 == 0),
                        2 => step.tear(&mut cut, |sector| sector % 2 == 1),
                        _ => step.tear(&mut cut, |sector| sector < 3),
                    }
                    let found = Memory::of(cut);
                    let case = format!("write {number} of {}, torn {torn}", steps.len());
                    let (mut again, held) = found.open().unwrap_or_else(|e| panic!("{case}: {e}"));
                    assert!(held == old || held == new, "{case}");
                    assert!(!replaced || held == new, "{case}: back to what was before");
                    replaced |= held == new && torn == 0;
                    // It goes on from there, and what it says then is found.
                    block_on(again.append(b"more")).expect("room");
                    let held = found.open().expect("readable").1.expect("not blank");
                    assert_eq!(
                        held.records.last().map(|last| &last[..]),
                        Some(&b"more"[..])
                    );
                    block_on(replace(&mut again, &bytes)).expect("room");
                    assert_eq!(
                        found.open().expect("readable").1,
                        Some(contents(&bytes, &[]))
                    );
                }
                step.apply(&mut whole);
            }
            assert_eq!(Memory::of(whole).open().expect("readable").1, new);
        }
    }
}

#[test]
fn a_rotten_header_of_a_grown_half_is_refused_and_the_older_one_never_used() {
    for (disk, mut area, _) in histories() {
        for length in [250_000, 260_000, 270_000] {
            block_on(replace(&mut area, &image(length, 5))).expect("room");
            let base = area.live.expect("made").half.base as usize;
            let rotten = Memory::of(disk.bytes());
            rotten.0.borrow_mut().bytes[base + 40] ^= 0x40;
            match rotten.open().map(|(_, contents)| contents) {
                Err(AreaError::Damaged { what, .. }) => {
                    assert_eq!(what, Damage::LiveHalfUnreadable);
                }
                other => panic!("not refused: {other:?}"),
            }
        }
    }
}

#[test]
fn an_area_that_cannot_grow_goes_on_as_large_as_it_is_while_that_is_enough() {
    let disk = Memory::default();
    let (mut area, _) = disk.open().expect("new");
    disk.0.borrow_mut().size_max = Some(2 * FIRST);
    for seed in 1..4 {
        let bytes = image(40_000, seed);
        block_on(replace(&mut area, &bytes)).expect("it fits");
        assert_eq!(area.half_bytes(), FIRST);
        assert_eq!(
            disk.open().expect("readable").1,
            Some(contents(&bytes, &[]))
        );
    }
    let bytes = image(80_000, 9);
    let refused = block_on(replace(&mut area, &bytes));
    assert!(matches!(
        refused,
        Err(AreaError::Disk(DiskError::Full { .. }))
    ));
    disk.0.borrow_mut().size_max = None;
    block_on(replace(&mut area, &bytes)).expect("there is space again");
    assert_eq!(area.half_bytes(), 8 * FIRST);
    let most = image(16 * FIRST, 3);
    let refused = block_on(replace(&mut area, &most));
    assert!(
        matches!(refused, Err(AreaError::Full { .. })),
        "{refused:?}"
    );
}

#[test]
fn an_area_that_was_cut_short_is_refused() {
    let disk = Memory::default();
    let (mut area, _) = disk.open().expect("new");
    for seed in 1..4 {
        block_on(replace(&mut area, &image(30_000, seed))).expect("room");
    }
    assert_eq!(area.live.expect("made").half.base, 0, "a larger half 0");
    disk.0.borrow_mut().bytes.truncate(2 * FIRST as usize);
    match disk.open().map(|(_, contents)| contents) {
        Err(AreaError::Damaged { what, .. }) => assert_eq!(what, Damage::Truncated),
        other => panic!("not refused: {other:?}"),
    }
}
