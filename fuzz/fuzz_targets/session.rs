//! Two sessions on one unit from their first PDU to their end: commands, their data, task
//! management, text, logouts, second logins, raw bytes, in any order and cut anywhere, while
//! commands run when the input says so. The oracles are those of the crate's `session` module:
//! what a session sends is in order, bounded and explainable, and everything that was begun ends.
#![no_main]

use bytes::Bytes;
use holdfast_fuzz::input::Input;
use holdfast_fuzz::memory::bounded;
use holdfast_fuzz::session::{Offer, World, pattern};
use holdfast_fuzz::unit::{CAPACITY_BYTES, small_command};
use holdfast_iscsi::pdu::framing::{Digests, Frame};
use holdfast_iscsi::pdu::{FINAL, Pdu, RESERVED_TAG};
use libfuzzer_sys::fuzz_target;

/// Two sessions, each with a window of commands with as much data as the volume holds.
const HELD_BYTES_MAX: usize = 24 << 20;
const STEPS_MAX: usize = 200;

fuzz_target!(
    init: holdfast_fuzz::seeds::plant("session"),
    |bytes: &[u8]| bounded(HELD_BYTES_MAX, || run(bytes))
);

fn offer(input: &mut Input<'_>) -> Offer {
    Offer {
        choice: input.byte(),
        lengths: input.byte(),
    }
}

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.byte();
    let cut = usize::from(input.byte());
    let offers = [offer(&mut input), offer(&mut input)];
    let mut world = World::new(choice & 1 != 0, &offers);
    for step in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let what = input.byte();
        let who = usize::from(what >> 7);
        let tag = step as u32;
        match what & 0x0f {
            0..=2 => command(&mut world, who, tag, cut, &mut input),
            3 | 4 => data_out(&mut world, who, cut, &mut input),
            5 | 6 => world.run(who, usize::from(what >> 4 & 7)),
            7 => task_management(&mut world, who, tag, cut, &mut input),
            8 => text(&mut world, who, tag, cut, &mut input),
            9 => nop(&mut world, who, tag, cut, &mut input),
            10 => {
                let mut pdu = numbered(&mut world, who, 0x06, tag);
                pdu.header[1] = FINAL | input.byte() & 3;
                send(&mut world, who, pdu, cut);
            }
            11 => world.disturb(who, what >> 4),
            12 => {
                let offer = offer(&mut input);
                world.log_in_again(who, offer);
            }
            13 => header(&mut world, who, cut, &mut input),
            14 => {
                let length = usize::from(input.byte());
                let raw = input.bytes(length);
                world.peers.iter_mut().for_each(|peer| peer.pure = false);
                world.peers[who].unknown = true;
                world.feed(who, raw, cut);
            }
            _ => world.resize(CAPACITY_BYTES / 8 * (u64::from(what >> 4 & 7) + 1)),
        }
    }
    world.end();
}

/// A PDU with the next command number.
fn numbered(world: &mut World, who: usize, opcode: u8, tag: u32) -> Pdu {
    let peer = &mut world.peers[who];
    let mut pdu = Pdu::new(opcode);
    pdu.header[1] = FINAL;
    pdu.put_u32(16, tag);
    pdu.put_u32(24, peer.command_number);
    if opcode & 0x40 == 0 {
        peer.command_number = peer.command_number.wrapping_add(1);
    }
    pdu
}

fn send(world: &mut World, who: usize, pdu: Pdu, cut: usize) {
    let digests = world.peers[who].digests();
    let bytes = wire(pdu, digests);
    world.feed(who, &bytes, cut);
}

fn wire(pdu: Pdu, digests: Digests) -> Vec<u8> {
    let frame = Frame::new(pdu, digests);
    frame.pieces().flat_map(|piece| piece.to_vec()).collect()
}

/// Data of a write, from this offset on.
fn patterned(offset: usize, length: usize) -> Bytes {
    (offset..offset + length).map(pattern).collect()
}

fn command(world: &mut World, who: usize, tag: u32, cut: usize, input: &mut Input<'_>) {
    let how = input.byte();
    let again = how & 1 != 0;
    let tag = if again {
        tag.saturating_sub(u32::from(input.byte() & 7))
    } else {
        tag
    };
    let opcode = if how & 2 != 0 { 0x41 } else { 0x01 };
    let mut pdu = numbered(world, who, opcode, tag);
    let cdb = small_command(input);
    pdu.header[32..].copy_from_slice(&cdb);
    let reads = how & 4 != 0;
    let expected = match input.byte() {
        exact @ 0..0x80 => u32::from(exact) * 512,
        other => u32::from(other & 0x7f) * 37,
    };
    pdu.put_u32(20, expected);
    let attribute = input.byte() & 3;
    pdu.header[1] = attribute | if reads { 0x40 } else { 0x20 };
    if how & 8 == 0 {
        pdu.header[1] |= FINAL;
    }
    if how & 0x10 != 0 {
        pdu.data = patterned(0, (expected as usize).min(usize::from(input.byte()) * 64));
    }
    if cdb[0] == 0x5f {
        // PERSISTENT RESERVE OUT with keys that may be registered.
        let keys = input.byte();
        let mut list = vec![0; 24];
        (list[7], list[15]) = (keys & 3, keys >> 2 & 3);
        list[20] = keys >> 4;
        pdu.header[37..41].copy_from_slice(&24_u32.to_be_bytes());
        pdu.put_u32(20, 24);
        pdu.data = list.into();
    }
    if how & 0x20 != 0 {
        // Out of order: the one before is sent later, or never.
        pdu.put_u32(24, pdu.command_number().wrapping_add(1));
    }
    if how & 0x40 != 0 {
        world.peers[who].command_number = pdu.command_number().wrapping_sub(2);
    }
    if how & 0x80 != 0 {
        pdu.header[9] = input.byte();
    }
    let expected = pdu.u32_at(20);
    world.peers[who].note(tag, expected, cdb[0], again);
    send(world, who, pdu, cut);
}

/// Data that was asked for, or that was not.
fn data_out(world: &mut World, who: usize, cut: usize, input: &mut Input<'_>) {
    let how = input.byte();
    let asked = if how & 1 == 0 {
        world.peers[who].asked.pop()
    } else {
        None
    };
    let mut pdu = Pdu::new(0x05);
    let Some(asked) = asked else {
        // Unsolicited: for some command, at some offset.
        let (tag, offset) = (u32::from(input.byte()), usize::from(input.byte()) * 64);
        pdu.header[1] = how & FINAL;
        pdu.put_u32(16, tag);
        pdu.put_u32(20, RESERVED_TAG);
        pdu.put_u32(36, u32::from(how >> 1 & 3));
        pdu.put_u32(40, offset as u32);
        pdu.data = patterned(offset, usize::from(input.byte()) * 64);
        return send(world, who, pdu, cut);
    };
    let pieces = usize::from(how >> 1 & 3) + 1;
    let piece = (asked.bytes as usize).div_ceil(pieces).next_multiple_of(4);
    let mut sent = 0;
    let mut number = 0;
    while sent < asked.bytes as usize {
        let length = piece.min(asked.bytes as usize - sent);
        let mut part = pdu.clone();
        let offset = asked.offset as usize + sent;
        sent += length;
        let last = sent == asked.bytes as usize;
        part.header[1] = if last { FINAL } else { 0 };
        part.put_u32(16, asked.tag);
        part.put_u32(20, asked.transfer_tag);
        part.put_u32(36, number);
        part.put_u32(40, offset as u32);
        part.data = patterned(offset, length);
        if how & 8 != 0 && last {
            // One field wrong.
            let at = [16, 20, 36, 40][usize::from(how >> 4 & 3)];
            part.put_u32(at, part.u32_at(at).wrapping_add(u32::from(input.byte())));
        }
        number += 1;
        send(world, who, part, cut);
    }
}

fn task_management(world: &mut World, who: usize, tag: u32, cut: usize, input: &mut Input<'_>) {
    let how = input.byte();
    let opcode = if how & 0x80 != 0 { 0x42 } else { 0x02 };
    let mut pdu = numbered(world, who, opcode, tag);
    pdu.header[1] = FINAL | how & 0x0f;
    pdu.put_u32(20, tag.saturating_sub(u32::from(input.byte() & 15)));
    let number = pdu.command_number();
    pdu.put_u32(
        32,
        number.wrapping_add(u32::from(how >> 4 & 7)).wrapping_sub(2),
    );
    send(world, who, pdu, cut);
}

fn text(world: &mut World, who: usize, tag: u32, cut: usize, input: &mut Input<'_>) {
    let how = input.byte();
    let mut pdu = numbered(world, who, 0x04, tag);
    pdu.header[1] = how & 0xc0;
    pdu.put_u32(
        20,
        if how & 1 == 0 {
            RESERVED_TAG
        } else {
            u32::from(input.byte())
        },
    );
    pdu.data = match how >> 1 & 3 {
        0 => Bytes::from_static(b"SendTargets=All\0"),
        1 => Bytes::from_static(b"SendTargets=\0"),
        2 => Bytes::new(),
        _ => {
            let length = usize::from(input.byte());
            world.peers[who].pure = false;
            Bytes::copy_from_slice(input.bytes(length))
        }
    };
    send(world, who, pdu, cut);
}

fn nop(world: &mut World, who: usize, tag: u32, cut: usize, input: &mut Input<'_>) {
    let how = input.byte();
    let mut pdu = numbered(world, who, if how & 1 == 0 { 0x40 } else { 0x00 }, tag);
    if how & 2 != 0 {
        pdu.put_u32(16, RESERVED_TAG);
    }
    pdu.put_u32(20, RESERVED_TAG);
    pdu.data = patterned(0, usize::from(how >> 2) * 64);
    send(world, who, pdu, cut);
}

/// A header of any bytes; only its lengths are right.
fn header(world: &mut World, who: usize, cut: usize, input: &mut Input<'_>) {
    let mut pdu = Pdu::new(0);
    for (to, from) in pdu.header.iter_mut().zip(input.bytes(48)) {
        *to = *from;
    }
    let length = usize::from(input.byte());
    pdu.data = Bytes::copy_from_slice(input.bytes(length));
    world.peers.iter_mut().for_each(|peer| peer.pure = false);
    world.peers[who].unknown = true;
    send(world, who, pdu, cut);
}
