//! INQUIRY data and vital product data pages (SPC-4 6.4, 7.8; SBC-3 6.6).

use crate::copy;
use crate::device::DeviceIdentity;
use crate::limits;
use crate::ports::TargetPort;

/// Vital product data pages, sorted as page 00h lists them.
pub const PAGES: [u8; 8] = [0x00, 0x80, 0x83, 0x86, 0x8f, 0xb0, 0xb1, 0xb2];

/// Peripheral qualifier and type of a unit that does not exist.
pub const NO_UNIT: u8 = 0x7f;

/// Version descriptors: SAM-5, iSCSI, SPC-4, SBC-3 (SPC-4 table 142).
const VERSION_DESCRIPTORS: [u16; 4] = [0x00a0, 0x0960, 0x0460, 0x04c0];

/// Standard INQUIRY data, uncut; `peripheral` is zero or [`NO_UNIT`].
pub fn standard(identity: &DeviceIdentity, peripheral: u8) -> Vec<u8> {
    let mut bytes = vec![0; 96];
    bytes[0] = peripheral;
    bytes[2] = 6;
    bytes[3] = 0x12;
    bytes[4] = (bytes.len() - 5) as u8;
    // TPGS 11b: implicit and explicit asymmetric access. 3PC: EXTENDED COPY.
    bytes[5] = 0x30 | 0x08;
    bytes[7] = 0x02;
    put_text(&mut bytes[8..16], &identity.vendor);
    put_text(&mut bytes[16..32], &identity.product);
    put_text(&mut bytes[32..36], &identity.revision);
    for (slot, descriptor) in bytes[58..].chunks_exact_mut(2).zip(VERSION_DESCRIPTORS) {
        slot.copy_from_slice(&descriptor.to_be_bytes());
    }
    bytes
}

/// A vital product data page, uncut; `None` if the unit has no such page.
pub fn vital_product_data(
    page: u8,
    identity: &DeviceIdentity,
    port: &TargetPort,
    peripheral: u8,
) -> Option<Vec<u8>> {
    let body = match page {
        0x00 => PAGES.to_vec(),
        0x80 => identity.serial.as_bytes().to_vec(),
        0x83 => device_identification(identity, port),
        0x86 => extended_inquiry(),
        0x8f => copy::third_party_page(),
        0xb0 => block_limits(identity.logical_block_bytes),
        0xb1 => block_characteristics(),
        0xb2 => logical_block_provisioning(),
        _ => return None,
    };
    let length = (body.len() as u16).to_be_bytes();
    let mut bytes = vec![peripheral, page, length[0], length[1]];
    bytes.extend_from_slice(&body);
    Some(bytes)
}

fn put_text(field: &mut [u8], text: &str) {
    field.fill(b' ');
    for (slot, byte) in field.iter_mut().zip(text.bytes()) {
        *slot = if byte.is_ascii_graphic() { byte } else { b' ' };
    }
}

/// Association of a designator (SPC-4 table 596).
#[derive(Clone, Copy)]
enum Association {
    Unit = 0,
    Port = 1,
    Device = 2,
}

fn designator(code_set: u8, association: Association, kind: u8, value: &[u8]) -> Vec<u8> {
    /// Protocol identifier 5h is iSCSI; PIV says that it is valid.
    const ISCSI: u8 = 0x50;
    const PROTOCOL_VALID: u8 = 0x80;
    let (protocol, valid) = match association {
        Association::Unit => (0, 0),
        Association::Port | Association::Device => (ISCSI, PROTOCOL_VALID),
    };
    let association = (association as u8) << 4;
    let mut bytes = vec![
        protocol | code_set,
        valid | association | kind,
        0,
        value.len() as u8,
    ];
    bytes.extend_from_slice(value);
    bytes
}

fn device_identification(identity: &DeviceIdentity, port: &TargetPort) -> Vec<u8> {
    const BINARY: u8 = 1;
    const ASCII: u8 = 2;
    const UTF8: u8 = 3;
    let mut vendor = vec![0; 8];
    put_text(&mut vendor, &identity.vendor);
    vendor.extend(identity.serial.bytes().take(64));
    let [high, low] = port.relative_id.to_be_bytes();
    let relative = [0, 0, high, low];
    let [high, low] = port.group.to_be_bytes();
    let group = [0, 0, high, low];
    let port_name = name_string(&format!("{},t,0x{:04x}", port.target, port.group));
    let device_name = name_string(&port.target);
    [
        designator(BINARY, Association::Unit, 3, &identity.naa),
        designator(ASCII, Association::Unit, 1, &vendor),
        designator(BINARY, Association::Port, 4, &relative),
        designator(BINARY, Association::Port, 5, &group),
        designator(UTF8, Association::Port, 8, &port_name),
        designator(UTF8, Association::Device, 8, &device_name),
    ]
    .concat()
}

/// A SCSI name string: null-terminated, padded to four bytes, at most 252 bytes for the length
/// field of the designator.
fn name_string(name: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = name.bytes().take(251).collect();
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn extended_inquiry() -> Vec<u8> {
    let mut body = vec![0; 0x3c];
    // HEADSUP, ORDSUP, SIMPSUP.
    body[5 - 4] = 0x07;
    // LUICLR: unit attentions are cleared when they are reported.
    body[7 - 4] = 0x01;
    body
}

fn block_limits(block_bytes: u32) -> Vec<u8> {
    let blocks = |bytes: u64| (bytes / u64::from(block_bytes)) as u32;
    let granularity = blocks(u64::from(limits::PHYSICAL_BLOCK_BYTES)).max(1);
    let mut body = vec![0; 0x3c];
    let mut put = |offset: usize, value: u32| {
        body[offset - 4..offset].copy_from_slice(&value.to_be_bytes());
    };
    put(8, blocks(limits::TRANSFER_BYTES_MAX));
    put(12, blocks(limits::TRANSFER_BYTES_OPTIMAL));
    put(20, blocks(limits::UNMAP_BYTES_MAX));
    put(24, limits::UNMAP_DESCRIPTORS_MAX);
    put(28, granularity);
    // UGAVALID with an alignment of zero.
    put(32, 0x8000_0000);
    put(40, blocks(limits::WRITE_SAME_BYTES_MAX));
    // Longest atomic write, its alignment and its granularity; there are no boundaries.
    put(44, blocks(limits::ATOMIC_BYTES_MAX));
    put(48, blocks(limits::ATOMIC_GRANULARITY_BYTES));
    put(52, blocks(limits::ATOMIC_GRANULARITY_BYTES));
    // WSNZ.
    body[0] = 0x01;
    body[5 - 4] = blocks(limits::COMPARE_AND_WRITE_BYTES_MAX).min(255) as u8;
    body[6 - 4..8 - 4].copy_from_slice(&(granularity as u16).to_be_bytes());
    body
}

fn block_characteristics() -> Vec<u8> {
    let mut body = vec![0; 0x3c];
    // Rotation rate 1: a medium that does not rotate.
    body[5 - 4] = 1;
    // FUAB: SYNCHRONIZE CACHE and FUA act as SBC-3 says.
    body[8 - 4] = 0x02;
    body
}

fn logical_block_provisioning() -> Vec<u8> {
    // LBPU, LBPWS, LBPWS10, LBPRZ; thin provisioned.
    vec![0, 0x80 | 0x40 | 0x20 | 0x04, 2, 0]
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::ports::SinglePort;

    fn identity() -> DeviceIdentity {
        DeviceIdentity {
            naa: [0x60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            serial: "0123456789".into(),
            vendor: "HOLDFAST".into(),
            product: "Volume".into(),
            revision: "1".into(),
            logical_block_bytes: 512,
            capacity_bytes: 1 << 30,
        }
    }

    fn port() -> TargetPort {
        let groups = Rc::new(SinglePort {
            group: 7,
            relative_id: 3,
        });
        TargetPort {
            target: "iqn.2026-01.test:v".into(),
            group: 7,
            relative_id: 3,
            groups,
        }
    }

    #[test]
    fn standard_data_pads_names_with_spaces() {
        let bytes = standard(&identity(), 0);
        assert_eq!(bytes[..8], [0, 0, 6, 0x12, 91, 0x38, 0, 2]);
        assert_eq!(&bytes[8..36], b"HOLDFASTVolume          1   ");
    }

    #[test]
    fn every_advertised_page_is_served_and_states_its_length() {
        for page in PAGES {
            let bytes = vital_product_data(page, &identity(), &port(), 0).unwrap();
            assert_eq!(bytes[1], page);
            assert_eq!(
                usize::from(u16::from_be_bytes([bytes[2], bytes[3]])) + 4,
                bytes.len()
            );
        }
        assert!(PAGES.is_sorted());
        assert_eq!(vital_product_data(0xc0, &identity(), &port(), 0), None);
    }

    #[test]
    fn identification_page_starts_with_the_naa_and_its_designators_add_up() {
        let bytes = vital_product_data(0x83, &identity(), &port(), 0).unwrap();
        assert_eq!(bytes[4..8], [1, 3, 0, 16]);
        assert_eq!(bytes[8..24], identity().naa);
        let mut at = 4;
        let mut kinds = Vec::new();
        while at < bytes.len() {
            kinds.push(bytes[at + 1]);
            at += 4 + usize::from(bytes[at + 3]);
        }
        assert_eq!(at, bytes.len());
        assert_eq!(kinds, [0x03, 0x01, 0x94, 0x95, 0x98, 0xa8]);
    }

    #[test]
    fn block_limits_are_the_enforced_ones_in_blocks() {
        let bytes = vital_product_data(0xb0, &identity(), &port(), 0).unwrap();
        let field = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((bytes[4], bytes[5]), (1, 64));
        assert_eq!(u16::from_be_bytes([bytes[6], bytes[7]]), 8);
        assert_eq!(field(8), 8192);
        assert_eq!(field(20), 1 << 20);
        assert_eq!(field(24), 256);
        assert_eq!(field(28), 8);
        assert_eq!(field(40), 32 << 10);
        assert_eq!([44, 48, 52, 56, 60].map(field), [256, 8, 8, 0, 0]);
    }
}
