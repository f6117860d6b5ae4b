//! The data of a snapshot, in chunks: nobody who makes, stores, sends or reads one has to hold or
//! copy the whole at once.

use bytes::Bytes;

/// Bytes of every chunk but the last one: what is done with one takes well below a millisecond,
/// and it fits into a message between nodes many times.
pub(super) const CHUNK_BYTES: usize = 512 << 10;

/// Chunks of [`CHUNK_BYTES`], but for the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SnapshotData {
    chunks: Vec<Bytes>,
}

impl SnapshotData {
    /// The same bytes, uncopied.
    pub(super) fn of(mut bytes: Bytes) -> Self {
        let mut chunks = Vec::with_capacity(bytes.len().div_ceil(CHUNK_BYTES));
        while !bytes.is_empty() {
            chunks.push(bytes.split_to(bytes.len().min(CHUNK_BYTES)));
        }
        Self { chunks }
    }

    /// Puts together what was sent chunk by chunk.
    pub(super) fn of_chunks(chunks: Vec<Bytes>) -> Self {
        Self { chunks }
    }

    pub(super) fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    pub(super) fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    /// All of it in one piece.
    pub(super) fn whole(&self) -> Bytes {
        match &self.chunks[..] {
            [one] => one.clone(),
            several => Bytes::from(several.concat()),
        }
    }
}

/// Makes a [`SnapshotData`] from parts of any length.
#[derive(Default)]
pub(super) struct Builder {
    chunks: Vec<Bytes>,
    last: Vec<u8>,
}

impl Builder {
    pub(super) fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.last.capacity() == 0 {
                self.last.reserve_exact(CHUNK_BYTES);
            }
            let room = CHUNK_BYTES - self.last.len();
            let (some, rest) = bytes.split_at(bytes.len().min(room));
            self.last.extend_from_slice(some);
            bytes = rest;
            if self.last.len() == CHUNK_BYTES {
                self.chunks.push(std::mem::take(&mut self.last).into());
            }
        }
    }

    pub(super) fn finish(mut self) -> SnapshotData {
        if !self.last.is_empty() {
            self.last.shrink_to_fit();
            self.chunks.push(self.last.into());
        }
        SnapshotData {
            chunks: self.chunks,
        }
    }
}

/// Reads values one after the other that may lie across chunks.
pub(super) struct Reader<'a> {
    /// Bytes of chunks that were loaded, of which so many are read.
    loaded: Vec<u8>,
    read: usize,
    following: std::slice::Iter<'a, Bytes>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(data: &'a SnapshotData) -> Self {
        Self {
            loaded: Vec::new(),
            read: 0,
            following: data.chunks.iter(),
        }
    }

    /// Reads the next value by `decode`, which gives what follows it, or `None` also if bytes are
    /// missing at the end of those that it is given.
    pub(super) fn next<T>(
        &mut self,
        mut decode: impl FnMut(&[u8]) -> Option<(T, &[u8])>,
    ) -> Option<T> {
        loop {
            let left = &self.loaded[self.read..];
            let decoded = decode(left).map(|(value, rest)| (value, left.len() - rest.len()));
            if let Some((value, length)) = decoded {
                self.read += length;
                return Some(value);
            }
            let chunk = self.following.next()?;
            self.loaded.drain(..self.read);
            self.read = 0;
            self.loaded.extend_from_slice(chunk);
        }
    }

    /// Whether everything was read.
    pub(super) fn is_at_end(&self) -> bool {
        self.read == self.loaded.len() && self.following.as_slice().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_parts_is_one_sequence_of_equal_chunks() {
        for parts in [&[][..], &[1], &[CHUNK_BYTES], &[700_000, 3, 1_500_000]] {
            let total: usize = parts.iter().sum();
            let bytes: Vec<u8> = (0..total).map(|at| (at % 251) as u8).collect();
            let (mut builder, mut at) = (Builder::default(), 0);
            for part in parts {
                builder.put(&bytes[at..at + part]);
                at += part;
            }
            let data = builder.finish();
            assert_eq!((data.len(), &data.whole()[..]), (total, &bytes[..]));
            assert_eq!(data, SnapshotData::of(bytes.into()));
            let last = data.chunks().len().saturating_sub(1);
            let mut full = data.chunks()[..last].iter();
            assert!(full.all(|chunk| chunk.len() == CHUNK_BYTES));
        }
    }

    #[test]
    fn values_across_chunks_are_read_and_missing_bytes_are_noticed() {
        let lengths = [5, CHUNK_BYTES - 3, 9, 2 * CHUNK_BYTES, 0, 70_000];
        let values: Vec<Vec<u8>> = lengths.iter().map(|length| vec![7; *length]).collect();
        let mut builder = Builder::default();
        for value in &values {
            builder.put(&postcard::to_stdvec(value).expect("plain data"));
        }
        let data = builder.finish();
        let mut reader = Reader::new(&data);
        for value in &values {
            assert!(!reader.is_at_end());
            let read = reader.next(|bytes| postcard::take_from_bytes::<Vec<u8>>(bytes).ok());
            assert_eq!(read.as_ref(), Some(value));
        }
        assert!(reader.is_at_end());
        let none = reader.next(|bytes| postcard::take_from_bytes::<u8>(bytes).ok());
        assert_eq!(none, None);
    }
}
