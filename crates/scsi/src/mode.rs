//! Mode pages (SPC-4 7.5, SBC-3 6.5): what a host may see and the two bits it may set.
//!
//! The changeable bits are D_SENSE and SWP of the Control page; they are shared by all nexuses
//! and are not saved.

use crate::sense::Sense;

/// The changeable state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ModeState {
    /// D_SENSE: report sense data in descriptor format.
    pub descriptor_sense: bool,
    /// SWP: refuse writes.
    pub write_protect: bool,
}

/// What MODE SENSE asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeSense {
    /// MODE SENSE(10).
    pub long: bool,
    /// DBD: leave out the block descriptor.
    pub no_descriptors: bool,
    /// PC: 0 current, 1 changeable, 2 default, 3 saved.
    pub control: u8,
    /// Page code; 3Fh for all.
    pub page: u8,
    /// Subpage code; FFh for all.
    pub subpage: u8,
}

/// Page code, subpage code, body after the page header, mask of the changeable bits.
type Page = (u8, u8, Vec<u8>, Vec<u8>);

const CONTROL: u8 = 0x0a;
const DESCRIPTOR_SENSE: u8 = 0x04;
const WRITE_PROTECT: u8 = 0x08;

fn pages(state: ModeState) -> Vec<Page> {
    let fixed = |code, subpage, body: Vec<u8>| {
        let mask = vec![0; body.len()];
        (code, subpage, body, mask)
    };
    // TST 001b: one task set for each nexus, so one host's ordered command delays no other's.
    let mut control = vec![0x20, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
    control[0] |= if state.descriptor_sense {
        DESCRIPTOR_SENSE
    } else {
        0
    };
    control[2] |= if state.write_protect {
        WRITE_PROTECT
    } else {
        0
    };
    let control_mask = vec![DESCRIPTOR_SENSE, 0, WRITE_PROTECT, 0, 0, 0, 0, 0, 0, 0];
    vec![
        // Read-write error recovery: AWRE, ARRE.
        fixed(0x01, 0, vec![0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        fixed(0x02, 0, vec![0; 14]),
        // Caching: WCE 0, RCD 0.
        fixed(0x08, 0, vec![0; 18]),
        (CONTROL, 0, control, control_mask),
        fixed(CONTROL, 1, vec![0; 28]),
        // Informational exceptions: none are reported.
        fixed(0x1c, 0, vec![0; 10]),
    ]
}

fn encode_page(page: &Page, changeable: bool) -> Vec<u8> {
    let (code, subpage, body, mask) = page;
    let shown = if changeable { mask } else { body };
    let mut bytes = if *subpage == 0 {
        vec![*code, body.len() as u8]
    } else {
        let length = (body.len() as u16).to_be_bytes();
        vec![code | 0x40, *subpage, length[0], length[1]]
    };
    bytes.extend_from_slice(shown);
    bytes
}

/// The parameter data of MODE SENSE, uncut.
pub fn sense(
    request: ModeSense,
    state: ModeState,
    block_bytes: u32,
    capacity_blocks: u64,
) -> Result<Vec<u8>, Sense> {
    if request.control == 3 {
        return Err(Sense::SAVING_NOT_SUPPORTED);
    }
    let shown = if request.control == 2 {
        ModeState::default()
    } else {
        state
    };
    let all = request.page == 0x3f;
    let selected: Vec<u8> = pages(shown)
        .iter()
        .filter(|(code, subpage, ..)| {
            (all || *code == request.page)
                && (request.subpage == 0xff || *subpage == request.subpage)
        })
        .flat_map(|page| encode_page(page, request.control == 1))
        .collect();
    if selected.is_empty() && request.page != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(2));
    }
    if all && !matches!(request.subpage, 0 | 0xff) {
        return Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(3));
    }
    let descriptor = if request.no_descriptors {
        Vec::new()
    } else {
        descriptor(block_bytes, capacity_blocks)
    };
    // DPOFUA: without it Linux would not send FUA. WP mirrors SWP.
    let device = 0x10 | if state.write_protect { 0x80 } else { 0 };
    let header = if request.long {
        let length = (6 + descriptor.len() + selected.len()) as u16;
        let [high, low] = length.to_be_bytes();
        vec![high, low, 0, device, 0, 0, 0, descriptor.len() as u8]
    } else {
        let length = (3 + descriptor.len() + selected.len()).min(255) as u8;
        vec![length, 0, device, descriptor.len() as u8]
    };
    Ok([header, descriptor, selected].concat())
}

/// The short block descriptor (SBC-3 6.5.2.2).
fn descriptor(block_bytes: u32, capacity_blocks: u64) -> Vec<u8> {
    let blocks = u32::try_from(capacity_blocks).unwrap_or(u32::MAX);
    [blocks.to_be_bytes(), block_bytes.to_be_bytes()].concat()
}

/// The state after MODE SELECT with this parameter list; a refusal changes nothing.
pub fn select(
    long: bool,
    save: bool,
    list: &[u8],
    state: ModeState,
    block_bytes: u32,
) -> Result<ModeState, Sense> {
    if save {
        return Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(1));
    }
    if list.is_empty() {
        return Ok(state);
    }
    let header_bytes = if long { 8 } else { 4 };
    let header = list.get(..header_bytes).ok_or(Sense::PARAMETER_LENGTH)?;
    let descriptor_bytes = usize::from(header[header_bytes - 1]);
    // LONGLBA and block descriptors of another form are not supported.
    if (long && (header[4] & 1 != 0 || header[6] != 0)) || !matches!(descriptor_bytes, 0 | 8) {
        return Err(Sense::INVALID_PARAMETER.at_parameter_byte(header_bytes as u16 - 1));
    }
    let mut at = header_bytes + descriptor_bytes;
    if let Some(descriptor) = list.get(header_bytes..at)
        && descriptor_bytes == 8
    {
        let wanted = u32::from_be_bytes([0, descriptor[5], descriptor[6], descriptor[7]]);
        if wanted != block_bytes {
            return Err(Sense::INVALID_PARAMETER.at_parameter_byte(header_bytes as u16 + 5));
        }
    }
    let mut state = state;
    let mut rest = list.get(at..).ok_or(Sense::PARAMETER_LENGTH)?;
    while !rest.is_empty() {
        let (next, used) = select_page(rest, at, state)?;
        state = next;
        at += used;
        rest = &rest[used..];
    }
    Ok(state)
}

/// Applies the first page of `bytes`; also says how many bytes it took.
fn select_page(bytes: &[u8], at: usize, state: ModeState) -> Result<(ModeState, usize), Sense> {
    let short = Sense::PARAMETER_LENGTH;
    let first = *bytes.first().ok_or(short)?;
    let (subpage, header, length) = if first & 0x40 == 0 {
        (0, 2, usize::from(*bytes.get(1).ok_or(short)?))
    } else {
        let fields = bytes.get(1..4).ok_or(short)?;
        (
            fields[0],
            4,
            usize::from(u16::from_be_bytes([fields[1], fields[2]])),
        )
    };
    let given = bytes.get(header..header + length).ok_or(short)?;
    let pages = pages(state);
    let wrong = |offset: usize| Sense::INVALID_PARAMETER.at_parameter_byte((at + offset) as u16);
    let (code, _, body, mask) = pages
        .iter()
        .find(|(code, sub, ..)| *code == first & 0x3f && *sub == subpage)
        .ok_or(wrong(0))?;
    if body.len() != length {
        return Err(wrong(header - 1));
    }
    for (index, ((new, old), mask)) in given.iter().zip(body).zip(mask).enumerate() {
        if (new ^ old) & !mask != 0 {
            return Err(wrong(header + index));
        }
    }
    let mut next = state;
    if (*code, subpage) == (CONTROL, 0) {
        next.descriptor_sense = given[0] & DESCRIPTOR_SENSE != 0;
        next.write_protect = given[2] & WRITE_PROTECT != 0;
    }
    Ok((next, header + length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: ModeSense = ModeSense {
        long: false,
        no_descriptors: true,
        control: 0,
        page: 0x3f,
        subpage: 0,
    };

    #[test]
    fn all_pages_are_sorted_and_fill_the_stated_length() {
        let bytes = sense(ALL, ModeState::default(), 512, 100).unwrap();
        assert_eq!(usize::from(bytes[0]) + 1, bytes.len());
        assert_eq!(bytes[2], 0x10);
        let mut at = 4;
        let mut codes = Vec::new();
        while at < bytes.len() {
            codes.push(bytes[at] & 0x3f);
            at += 2 + usize::from(bytes[at + 1]);
        }
        assert_eq!(codes, [0x01, 0x02, 0x08, 0x0a, 0x1c]);
    }

    #[test]
    fn write_cache_is_off_and_cannot_be_turned_on() {
        let request = ModeSense { page: 0x08, ..ALL };
        let bytes = sense(request, ModeState::default(), 512, 100).unwrap();
        assert_eq!(bytes[6] & 0x04, 0);
        let mut list = bytes.clone();
        list[0] = 0;
        list[2] = 0;
        assert!(select(false, false, &list, ModeState::default(), 512).is_ok());
        list[6] |= 0x04;
        let refused = select(false, false, &list, ModeState::default(), 512);
        assert_eq!(refused, Err(Sense::INVALID_PARAMETER.at_parameter_byte(6)));
    }

    #[test]
    fn software_write_protect_can_be_set_and_shows_in_the_header() {
        let mut list = sense(
            ModeSense {
                page: CONTROL,
                ..ALL
            },
            ModeState::default(),
            512,
            1,
        )
        .unwrap();
        list[0] = 0;
        list[4 + 2 + 2] |= WRITE_PROTECT;
        let state = select(false, false, &list, ModeState::default(), 512).unwrap();
        assert!(state.write_protect && !state.descriptor_sense);
        assert_eq!(sense(ALL, state, 512, 1).unwrap()[2], 0x90);
    }

    #[test]
    fn saved_values_and_unknown_pages_are_refused() {
        let saved = ModeSense { control: 3, ..ALL };
        assert_eq!(
            sense(saved, ModeState::default(), 512, 1),
            Err(Sense::SAVING_NOT_SUPPORTED)
        );
        let unknown = ModeSense { page: 0x2a, ..ALL };
        assert!(sense(unknown, ModeState::default(), 512, 1).is_err());
    }

    proptest! {
        #[test]
        fn any_parameter_list_is_applied_or_refused(long: bool, list: Vec<u8>) {
            let _ = select(long, false, &list, ModeState::default(), 512);
        }
    }
}
