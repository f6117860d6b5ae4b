//! What each part of an exported image is worth: a map file as GNU ddrescue writes it.
//!
//! ```text
//! # comments
//! current position  current status  current pass
//! position  size  status            for every part, in order, without gaps
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;

use holdfast_store::inspect::Trust;

/// Parts of an image, from 0 to its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageMap {
    size: u64,
    /// Where a part begins, and what it is worth up to where the next one begins.
    begins: BTreeMap<u64, Trust>,
}

impl ImageMap {
    /// An image of which nothing is there.
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            begins: BTreeMap::from([(0, Trust::NotHere)]),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// What the byte at `at` is worth.
    pub(super) fn at(&self, at: u64) -> Trust {
        let part = self.begins.range(..=at).next_back();
        part.map_or(Trust::NotHere, |(_, trust)| *trust)
    }

    /// Says what `bytes` bytes from `at` on are worth.
    pub(super) fn set(&mut self, at: u64, bytes: u64, trust: Trust) {
        let end = at.saturating_add(bytes).min(self.size);
        if at >= end {
            return;
        }
        let after = self.at(end);
        let before = at.checked_sub(1).map(|last| self.at(last));
        let inside: Vec<u64> = self.begins.range(at..end).map(|(from, _)| *from).collect();
        for from in inside {
            self.begins.remove(&from);
        }
        if before != Some(trust) {
            self.begins.insert(at, trust);
        }
        if end < self.size {
            if after == trust {
                self.begins.remove(&end);
            } else {
                self.begins.insert(end, after);
            }
        }
    }

    /// Bytes of each worth: sound, doubtful, unreadable, not here.
    pub(super) fn sums(&self) -> [u64; 4] {
        let mut sums = [0; 4];
        for (_, bytes, trust) in self.parts() {
            let place = match trust {
                Trust::Sound => 0,
                Trust::Doubtful => 1,
                Trust::Unreadable => 2,
                Trust::NotHere => 3,
            };
            sums[place] += bytes;
        }
        sums
    }

    /// Every part: where it begins, its bytes, and what it is worth.
    pub(super) fn parts(&self) -> impl Iterator<Item = (u64, u64, Trust)> + '_ {
        let ends = self.begins.keys().skip(1).copied().chain([self.size]);
        let parts = self.begins.iter().zip(ends);
        parts.map(|((from, trust), end)| (*from, end - from, *trust))
    }

    /// The file's content.
    pub(super) fn to_text(&self, about: &str) -> String {
        let mut text = String::from("# Mapfile. Created by holdfast store export\n");
        for line in about.lines() {
            let _ = writeln!(text, "# {line}");
        }
        text += "# current_pos  current_status  current_pass\n0x00000000     +               1\n";
        text += "#      pos        size  status\n";
        for (at, bytes, trust) in self.parts() {
            let _ = writeln!(text, "0x{at:08X}  0x{bytes:08X}  {}", letter(trust));
        }
        text
    }

    /// Reads a file's content; `None` if it is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut lines = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        lines.next()?;
        let mut parts = Vec::new();
        let mut size = 0;
        for line in lines {
            let mut fields = line.split_whitespace();
            let at = number(fields.next()?)?;
            let bytes = number(fields.next()?)?;
            let trust = match fields.next()? {
                "+" => Trust::Sound,
                "/" | "*" => Trust::Doubtful,
                "-" => Trust::Unreadable,
                "?" => Trust::NotHere,
                _ => return None,
            };
            if at != size {
                return None;
            }
            size = at.checked_add(bytes)?;
            parts.push((at, bytes, trust));
        }
        let mut map = Self::new(size);
        for (at, bytes, trust) in parts {
            map.set(at, bytes, trust);
        }
        Some(map)
    }
}

fn letter(trust: Trust) -> char {
    match trust {
        Trust::Sound => '+',
        Trust::Doubtful => '/',
        Trust::Unreadable => '-',
        Trust::NotHere => '?',
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_what_was_said_of_them_last() {
        let all = [
            Trust::NotHere,
            Trust::Unreadable,
            Trust::Doubtful,
            Trust::Sound,
        ];
        let mut plain = [Trust::NotHere; 40];
        let mut map = ImageMap::new(40);
        let mut state = 7u64;
        for _ in 0..2000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let at = state >> 33 & 63;
            let bytes = state >> 40 & 15;
            let trust = all[(state >> 50 & 3) as usize];
            map.set(at, bytes, trust);
            for place in plain.iter_mut().skip(at as usize).take(bytes as usize) {
                *place = trust;
            }
            for (at, trust) in (0..).zip(plain) {
                assert_eq!(map.at(at), trust);
            }
            assert_eq!(map.sums().iter().sum::<u64>(), 40);
            let parts: Vec<_> = map.parts().collect();
            assert!(parts.windows(2).all(|pair| pair[0].2 != pair[1].2));
            assert_eq!(ImageMap::parse(&map.to_text("a\nb")), Some(map.clone()));
        }
    }

    #[test]
    fn what_is_no_map_is_refused() {
        for text in ["", "0 + 1\n0 10", "0 + 1\n5 10 +", "0 + 1\n0 10 x"] {
            let parsed = ImageMap::parse(text);
            assert!(parsed.is_none_or(|map| map.size() == 0), "{text}");
        }
    }
}
