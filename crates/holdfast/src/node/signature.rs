//! What a disk that is no node's holds, by the signatures that tools leave at its beginning.

/// Offset, bytes, and what begins like this. What is written over something older comes first.
const SIGNATURES: [(usize, &[u8], &str); 11] = [
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (0, b"XFSB", "an XFS file system"),
    (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
    (65600, b"_BHRfS_M", "a btrfs file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (82, b"FAT32   ", "a FAT file system"),
    (4086, b"SWAPSPACE2", "a swap area"),
    (536, b"LVM2 001", "a physical volume of LVM"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a part of a RAID (md)"),
    (512, b"EFI PART", "a partition table (GPT)"),
    (510, &[0x55, 0xaa], "a partition table (MBR)"),
];

/// Names what begins with these bytes; `None` if that is not known here.
pub(super) fn name(head: &[u8]) -> Option<&'static str> {
    let found = SIGNATURES
        .iter()
        .find(|(at, signature, _)| head.get(*at..at + signature.len()) == Some(*signature));
    found.map(|(_, _, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signature_is_named_at_its_place_alone() {
        for (at, signature, expected) in SIGNATURES {
            let mut head = vec![0; 1 << 17];
            head[at..at + signature.len()].copy_from_slice(signature);
            assert_eq!(name(&head), Some(expected));
            head.rotate_right(1);
            assert_eq!(name(&head), None);
            assert_eq!(name(&head[..at]), None);
        }
    }
}
