//! Where fuzzing begins: a few inputs of each target that reach far, written by hand.
//!
//! A target writes them before it begins if it is told where. What a run found beyond them stays
//! in the corpus that `cargo xtask fuzz` keeps below `target/`, and is used again.

use std::path::Path;

/// Names the directory that a target's seeds are written to.
pub const DIRECTORY_VARIABLE: &str = "HOLDFAST_FUZZ_SEEDS";

/// Writes the seeds of a target if there is a directory for them.
pub fn plant(target: &str) {
    let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE) else {
        return;
    };
    for (name, bytes) in of(target) {
        let path = Path::new(&directory).join(format!("seed-{name}"));
        std::fs::write(&path, bytes).expect("the directory of the seeds can be written to");
    }
}

/// Name and content of the seeds of a target; empty for an unknown one.
pub fn of(target: &str) -> Vec<(&'static str, Vec<u8>)> {
    match target {
        "pdu" => pdu(),
        "text" => text(),
        "login" => login(),
        "cdb" => cdb(),
        "session" => session(),
        _ => Vec::new(),
    }
}

fn pdu() -> Vec<(&'static str, Vec<u8>)> {
    let mut nop = vec![0x0c, 1, 0x40, 0x80, 0, 0, 0, 0, 0, 5];
    nop.extend_from_slice(&[0; 40]);
    nop.extend_from_slice(b"hello\0\0\0");
    let mut additional = vec![0x0c, 7, 0x01, 0x80, 0, 0, 2, 0, 0, 4];
    additional.extend_from_slice(&[0x11; 52]);
    let mut framed = vec![0x8f, 5, 0x10, 0, 0x25, 9];
    framed.extend_from_slice(&[7; 49]);
    framed.extend_from_slice(&[0x21, 0]);
    let too_long = vec![0x0c, 0, 1, 0x80, 0, 0, 0, 0xff, 0xff, 0xff];
    vec![
        ("nop-out", [nop.clone(), nop[2..].to_vec()].concat()),
        ("additional-header", additional),
        ("framed-with-digests", framed),
        ("length-of-16-mib", [too_long, vec![0; 48]].concat()),
    ]
}

fn text() -> Vec<(&'static str, Vec<u8>)> {
    let linux = b"\0HeaderDigest=CRC32C,None\0DataDigest=None\0DefaultTime2Wait=2\0\
        DefaultTime2Retain=0\0IFMarker=No\0OFMarker=No\0ErrorRecoveryLevel=0\0InitialR2T=No\0\
        ImmediateData=Yes\0MaxBurstLength=16776192\0FirstBurstLength=262144\0\
        MaxOutstandingR2T=1\0MaxConnections=1\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0\
        MaxRecvDataSegmentLength=262144\0";
    let chap =
        b"\x01AuthMethod=CHAP,None\0CHAP_A=8,7,6,5\0CHAP_N=user\0CHAP_R=0x0123456789abcdef\0\
        CHAP_I=255\0CHAP_C=0bMDEyMzQ1Njc4OWFiY2RlZg==\0TaskReporting=RFC3720\0\
        iSCSIProtocolLevel=1\0X-com.example.key=1";
    vec![("linux", linux.to_vec()), ("chap", chap.to_vec())]
}

fn login() -> Vec<(&'static str, Vec<u8>)> {
    // Of each request: flags, what it says, length of the text that follows.
    let plain = vec![0, 0x87, 0x03, 0, 0];
    let discovery = vec![0, 0x81, 0x09, 0, 0, 0x87, 0, 0, 0];
    let chap = |kind: u8, last: u8| {
        let mut bytes = vec![kind, 0x00, 0x0b, 0, 0, 0x00, 0x10, 0, 0, last, 0x20, 0, 0];
        bytes.extend_from_slice(&[0x87, 0x00, 14, 0]);
        bytes.extend_from_slice(b"InitialR2T=No\0");
        bytes
    };
    let mutual = b"CHAP_I=9\0CHAP_C=0x0102030405060708\0";
    let mut mutual_chap = vec![2, 0x00, 0x0b, 0, 0, 0x00, 0x10, 0, 0, 0x83, 0x20];
    mutual_chap.extend_from_slice(&(mutual.len() as u16).to_le_bytes());
    mutual_chap.extend_from_slice(mutual);
    let reflected = vec![2, 0x00, 0x0b, 0, 0, 0x00, 0x10, 0, 0, 0x83, 0x60, 0, 0];
    vec![
        ("plain", plain),
        ("discovery", discovery),
        ("chap", chap(1, 0x81)),
        ("optional-chap", chap(3, 0x81)),
        ("mutual-chap", mutual_chap),
        ("reflected", reflected),
        ("no-authentication", vec![1, 0x87, 0x03, 0, 0]),
        (
            "continued",
            vec![
                0, 0x40, 0x03, 4, 0, b'X', b'-', b'a', b'=', 0x87, 0, 1, 0, b'1',
            ],
        ),
    ]
}

fn cdb() -> Vec<(&'static str, Vec<u8>)> {
    let short = [
        (
            "write-and-read",
            vec![4, 0x2a, 0, 3, 2, 4, 1, 2, 3, 4, 4, 0x28, 0, 2, 4],
        ),
        (
            "compare-and-write",
            vec![0x14, 0x89, 0, 3, 1, 0, 4, 0x88, 0, 3, 1],
        ),
        (
            "write-same",
            vec![4, 0x93, 0, 1, 4, 2, 9, 9, 4, 0x93, 8, 1, 4, 0],
        ),
        (
            "or-write",
            vec![
                4, 0x8b, 0, 1, 2, 0, 4, 0x8f, 2, 1, 2, 0, 4, 0x9c, 0, 8, 8, 0,
            ],
        ),
        (
            "reserve",
            vec![4, 0x16, 0, 0, 0, 5, 0x2a, 0, 1, 1, 1, 5, 5, 0x28, 0, 1, 1],
        ),
    ];
    let mut all: Vec<_> = short
        .into_iter()
        // Everybody's first command reports a unit attention.
        .map(|(name, body)| (name, [vec![0, 4, 0, 0, 0, 0, 5, 0, 0, 0, 0], body].concat()))
        .collect();
    let attention = vec![0, 4, 0, 0, 0, 0, 5, 0, 0, 0, 0];
    // Whole CDBs, each with a length of data where it takes some.
    let whole = |commands: &[(&[u8], &[u8])]| {
        let mut bytes = attention.clone();
        for (cdb, data) in commands {
            let mut padded = [0; 16];
            padded[..cdb.len()].copy_from_slice(cdb);
            bytes.push(0);
            bytes.extend_from_slice(&padded);
            if !data.is_empty() {
                bytes.push(data.len() as u8);
                bytes.extend_from_slice(data);
            }
        }
        bytes
    };
    let mut register = [0; 24];
    register[15] = 7;
    let mut preempt = [0; 24];
    (preempt[7], preempt[15]) = (7, 7);
    let unmap = [
        0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0,
    ];
    let mut copy = vec![1, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    copy.extend_from_slice(&[0xe4, 0, 0, 0, 1, 3, 0, 16]);
    copy.extend_from_slice(&[0x60; 16]);
    copy.extend_from_slice(&[0, 0, 0, 0, 0, 0, 2, 0]);
    copy.extend_from_slice(&[2, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 4]);
    copy.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64]);
    all.extend([
        (
            "persistent-reservation",
            whole(&[
                (&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24], &register),
                (&[0x5f, 1, 5, 0, 0, 0, 0, 0, 24], &preempt),
                (&[0x5e, 0, 0, 0, 0, 0, 0, 1, 0], &[]),
                (&[0x5e, 3, 0, 0, 0, 0, 0, 1, 0], &[]),
                (&[0x5f, 5, 5, 0, 0, 0, 0, 0, 24], &preempt),
            ]),
        ),
        (
            "unmap",
            whole(&[(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24], &unmap)]),
        ),
        (
            "extended-copy",
            whole(&[(&[0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 76], &copy)]),
        ),
        (
            "reports",
            whole(&[
                (&[0x12, 1, 0x83, 0, 255], &[]),
                (&[0x12, 1, 0xb2, 0, 255], &[]),
                (&[0x1a, 0, 0x3f, 0xff, 255], &[]),
                (&[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[]),
                (&[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 8, 0], &[]),
                (&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 8, 0], &[]),
                (&[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64], &[]),
            ]),
        ),
    ]);
    all
}

fn session() -> Vec<(&'static str, Vec<u8>)> {
    // Block size, cut, two offers (no digests, unsolicited data, small segments).
    let begin = |digests: u8| vec![0, 0, 0x08 | digests, 0x15, 0x08, 0x15];
    // TEST UNIT READY takes the unit attention of either session.
    let ready = [0, 4, 0, 0, 0, 0, 0, 0, 0x80, 4, 0, 0, 0, 0, 0, 0];
    let with =
        |digests: u8, steps: &[&[u8]]| [begin(digests), ready.to_vec(), steps.concat()].concat();
    let write: &[u8] = &[0, 0x10, 0x2a, 0, 3, 2, 2, 0, 16];
    let long_write: &[u8] = &[0, 0, 0x2a, 0, 8, 8, 8, 0];
    let read: &[u8] = &[0, 4, 0x28, 0, 2, 4, 4, 0];
    let run: &[u8] = &[5];
    let data: &[u8] = &[3, 2];
    let abort_set: &[u8] = &[7, 0x82, 0];
    let reset: &[u8] = &[7, 0x85, 0];
    let logout: &[u8] = &[10, 0];
    let targets: &[u8] = &[8, 0x80];
    let register: &[u8] = &[0, 0, 0x5f, 0, 0, 0, 0, 0, 0x04];
    vec![
        ("write-and-read", with(0, &[write, run, read, run, logout])),
        ("with-digests", with(3, &[write, run, read, run, logout])),
        (
            "bursts",
            with(0, &[long_write, data, data, data, data, run, read, run]),
        ),
        (
            "abort",
            with(0, &[write, read, abort_set, run, run, logout]),
        ),
        ("reset", with(0, &[write, reset, run, read, run])),
        (
            "logout-under-way",
            with(0, &[write, read, logout, run, run]),
        ),
        ("reservations", with(0, &[register, run, read, run])),
        (
            "reinstatement",
            with(0, &[write, &[12, 0x08, 0], read, run]),
        ),
        ("second-login", with(0, &[&[13, 0x43, 0x87], &[0; 47]])),
        (
            "discovery",
            vec![0, 1, 0x10, 0, 0x13, 0, 8, 0x80, 8, 0x80, 10, 0],
        ),
        ("text", with(0, &[targets, &[9, 4], logout])),
    ]
}
