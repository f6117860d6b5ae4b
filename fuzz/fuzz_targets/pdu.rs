//! Framing: a stream of any bytes, cut anywhere, gives the same PDUs and the same end; what is
//! framed comes out as it went in, and a digest notices one changed bit.
#![no_main]

use bytes::{Bytes, BytesMut};
use holdfast_fuzz::input::Input;
use holdfast_fuzz::memory::bounded;
use holdfast_iscsi::pdu::framing::{Decoder, Digests, Frame, FrameError};
use holdfast_iscsi::pdu::{HEADER_BYTES, Pdu};
use libfuzzer_sys::fuzz_target;

/// Beyond copies of the input itself.
const HELD_BYTES_MAX: usize = 64 << 10;

fuzz_target!(
    init: holdfast_fuzz::seeds::plant("pdu"),
    |bytes: &[u8]| bounded(HELD_BYTES_MAX + 16 * bytes.len(), || run(bytes))
);

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.byte();
    let decoder = Decoder {
        digests: Digests {
            header: choice & 1 != 0,
            data: choice & 2 != 0,
        },
        data_bytes_max: [0, 64, 300, 8192][usize::from(choice >> 2 & 3)],
    };
    let cut = usize::from(input.byte()).max(1);
    if choice & 0x80 == 0 {
        any_bytes(decoder, cut, input.rest());
    } else {
        framed(decoder, cut, &mut input);
    }
}

/// The same whether it comes at once or in pieces.
fn any_bytes(decoder: Decoder, cut: usize, stream: &[u8]) {
    let whole = decode(decoder, stream, stream.len().max(1));
    let pieces = decode(decoder, stream, cut);
    assert_eq!(whole, pieces, "cut every {cut} bytes");
    for pdu in whole.0 {
        assert!(pdu.data.len() <= decoder.data_bytes_max);
    }
}

fn decode(decoder: Decoder, stream: &[u8], cut: usize) -> (Vec<Pdu>, Option<FrameError>) {
    let mut buffer = BytesMut::new();
    let mut pdus = Vec::new();
    for piece in stream.chunks(cut) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(pdu)) => pdus.push(pdu),
                Ok(None) => break,
                Err(error) => return (pdus, Some(error)),
            }
        }
        let missing = decoder.missing(&buffer);
        let longest = HEADER_BYTES + 276 + 8 + decoder.data_bytes_max.next_multiple_of(4);
        assert!((1..=longest).contains(&missing), "{missing} bytes missing");
    }
    (pdus, None)
}

/// PDUs that a correct peer would send, then one flipped bit.
fn framed(decoder: Decoder, cut: usize, input: &mut Input<'_>) {
    let flip = usize::from(input.word());
    let mut sent = Vec::new();
    let mut stream = Vec::new();
    while !input.is_empty() && sent.len() < 8 {
        let mut pdu = Pdu::new(input.byte());
        let wanted = usize::from(input.byte()).min(decoder.data_bytes_max);
        for (to, from) in pdu.header[8..].iter_mut().zip(input.bytes(40)) {
            *to = *from;
        }
        pdu.data = Bytes::copy_from_slice(input.bytes(wanted));
        pdu.header[5..8].copy_from_slice(&(pdu.data.len() as u32).to_be_bytes()[1..]);
        let mut frame = Frame::new(pdu.clone(), decoder.digests);
        // Sent in pieces, as a full socket would take it.
        while frame.remaining() > 0 {
            let wire: Vec<u8> = frame.pieces().flat_map(|piece| piece.to_vec()).collect();
            assert_eq!(wire.len(), frame.remaining());
            let now = cut.max(wire.len() / 3).min(wire.len());
            stream.extend_from_slice(&wire[..now]);
            assert_eq!(frame.advance(now), 0);
        }
        sent.push(pdu);
    }
    let (received, error) = decode(decoder, &stream, cut);
    assert_eq!((&received, error), (&sent, None));
    if !stream.is_empty() && decoder.digests.header && decoder.digests.data {
        let bit = flip % (stream.len() * 8);
        stream[bit / 8] ^= 1 << (bit % 8);
        let (received, error) = decode(decoder, &stream, cut);
        // A longer length waits for bytes that do not come; everything else is an error.
        assert!(error.is_some() || received.len() < sent.len(), "bit {bit}");
    }
}
