//! The input as a sequence of small decisions.
//!
//! Everything is taken from the front and a missing byte is zero, so a prefix of an input is an
//! input that does the same and then less, and seeds can be written by hand.

use arbitrary::Unstructured;

/// What is left of an input.
pub struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    /// The whole input.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    /// Whether all of it has been used.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        // Only a type with invalid values could fail.
        self.0.arbitrary().unwrap_or(0)
    }

    /// The next two bytes, low byte first.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// The next bytes, as many as there are of those wanted.
    pub fn bytes(&mut self, wanted: usize) -> &'a [u8] {
        let there = wanted.min(self.0.len());
        self.0.bytes(there).unwrap_or(&[])
    }

    /// All the rest.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }
}
