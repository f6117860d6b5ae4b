//! Commands of two initiators on one unit, each run to its end. Every completion has its form,
//! no answer is longer than was asked for, a read returns what is stored, a write is stored.
#![no_main]

use bytes::Bytes;
use futures::FutureExt as _;
use holdfast_fuzz::input::Input;
use holdfast_fuzz::memory::bounded;
use holdfast_fuzz::unit::{Bench, CAPACITY_BYTES, judge, small_command};
use holdfast_scsi::command::{Command, Extent, decode};
use holdfast_scsi::limits::TRANSFER_BYTES_MAX;
use holdfast_scsi::{Admission, Attachment, DataOut, Status};
use libfuzzer_sys::fuzz_target;

/// A full volume, a copy of it in flight, and as much again for two answers.
const HELD_BYTES_MAX: usize = 4 * CAPACITY_BYTES as usize;
/// The longest answer that is not a read: 512 registrations with their names.
const ANSWER_BYTES_MAX: usize = 256 << 10;
const COMMANDS_MAX: usize = 24;

fuzz_target!(
    init: holdfast_fuzz::seeds::plant("cdb"),
    |bytes: &[u8]| bounded(HELD_BYTES_MAX + 8 * bytes.len(), || run(bytes))
);

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let bench = Bench::new(input.byte() & 1 != 0);
    let initiators = [bench.attach(1), bench.attach(2)];
    for _ in 0..COMMANDS_MAX {
        if input.is_empty() {
            return;
        }
        let choice = input.byte();
        if choice & 0xf0 == 0xf0 {
            let blocks = u64::from(choice & 0x0f) + 1;
            bench.device.resize(blocks * CAPACITY_BYTES / 16);
            continue;
        }
        let who = &initiators[usize::from(choice & 1)];
        let lun = if choice & 2 == 0 {
            0
        } else {
            u64::from(input.word()) << 40
        };
        let mut cdb = [0; 16];
        if choice & 4 == 0 {
            let some = input.bytes(16);
            cdb[..some.len()].copy_from_slice(some);
        } else {
            cdb = small_command(&mut input);
        }
        one(&bench, who, lun, cdb, choice, &mut input);
    }
}

fn one(bench: &Bench, who: &Attachment, lun: u64, cdb: [u8; 16], choice: u8, input: &mut Input) {
    let command = decode(&cdb);
    let (completion, data) = match who.admit(lun, &cdb) {
        Admission::Done(completion) => (completion, Bytes::new()),
        Admission::Run {
            command,
            data_out,
            data_in_bytes,
        } => {
            assert!(data_in_bytes <= TRANSFER_BYTES_MAX);
            // A conflict is judged by the execution, so data may be wanted that does not fit.
            assert!(data_out.bytes() <= TRANSFER_BYTES_MAX);
            if data_out.bytes() > 2 * CAPACITY_BYTES {
                return;
            }
            let data = data_for(bench, data_out, choice, input);
            let done = who.execute(command, data.clone()).now_or_never();
            let done = done.expect("nothing here waits");
            (done.expect("a volume in memory knows what it did"), data)
        }
    };
    judge(&completion);
    let allocation = match &command {
        Ok(Command::Read(extent)) => span(bench, *extent).1 as usize,
        Ok(_) | Err(_) => ANSWER_BYTES_MAX,
    };
    assert!(completion.data.len() <= allocation);
    let (Ok(command), Status::Good) = (command, completion.status) else {
        return;
    };
    match command {
        Command::Read(extent) => {
            let (offset, length) = span(bench, extent);
            assert_eq!(Some(completion.data), bench.stored(offset, length));
        }
        Command::Write(extent) | Command::WriteAtomic(extent) => {
            let (offset, _) = span(bench, extent);
            assert_eq!(
                Some(&data),
                bench.stored(offset, data.len() as u32).as_ref()
            );
        }
        Command::WriteSame {
            extent,
            unmap,
            no_data,
            ..
        } => {
            let (offset, length) = span(bench, extent);
            let stored = bench.stored(offset, length).expect("it was written");
            for block in stored.chunks(bench.block_bytes as usize) {
                let pattern = !no_data && block == &data[..];
                let zeroes = (unmap || no_data) && block.iter().all(|byte| *byte == 0);
                assert!(pattern || zeroes);
            }
        }
        Command::CompareAndWrite(extent) => {
            let (offset, length) = span(bench, extent);
            let stored = bench.stored(offset, length).expect("it was written");
            assert_eq!(stored, data[length as usize..]);
        }
        _ => {}
    }
}

fn span(bench: &Bench, extent: Extent) -> (u64, u32) {
    let block_bytes = u64::from(bench.block_bytes);
    let length = u64::from(extent.blocks).saturating_mul(block_bytes);
    let offset = extent.block.saturating_mul(block_bytes);
    (offset, u32::try_from(length).unwrap_or(u32::MAX))
}

/// What a transport would have collected: exactly what is wanted, or fewer whole blocks.
fn data_for(bench: &Bench, data_out: DataOut, choice: u8, input: &mut Input<'_>) -> Bytes {
    let bytes = match data_out {
        DataOut::None => return Bytes::new(),
        DataOut::Exact { bytes } | DataOut::List { bytes } => bytes,
        DataOut::Blocks { bytes, block_bytes } if choice & 8 != 0 => {
            let block_bytes = u64::from(block_bytes);
            bytes / 2 / block_bytes * block_bytes
        }
        DataOut::Blocks { bytes, .. } => bytes,
    };
    let wanted = usize::from(input.byte()).min(bytes as usize);
    let given = input.bytes(wanted);
    let mut data = vec![choice >> 4; bytes as usize];
    data[..given.len()].copy_from_slice(given);
    if choice & 16 != 0 && data.len() >= 2 * bench.block_bytes as usize {
        // For commands that compare: two equal halves.
        let (first, second) = data.split_at_mut(bytes as usize / 2);
        second[..first.len()].copy_from_slice(first);
    }
    data.into()
}
