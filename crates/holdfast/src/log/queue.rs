//! The bounded queue between those who log and standard error.
//!
//! Promises: [`Queue::push`] never waits for a write; memory is bounded; lines that were lost are
//! counted and the count stands where they would have stood; a write that fails is repeated until
//! it succeeds, so what was queued before a disk filled up appears when it has room again.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

use super::own_line;
use crate::standard;

/// Lines waiting to be written.
const QUEUED_BYTES_MAX: usize = 1 << 20;
/// What a line costs besides its text.
const LINE_OVERHEAD_BYTES: usize = 64;
/// A line that is longer is cut. Names in it may come from strangers.
const LINE_BYTES_MAX: usize = 2 << 10;
const CUT: &[u8] = "…\n".as_bytes();
/// Between attempts to write a line that cannot be written.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What is written to; standard error but in tests.
pub(super) trait Output: Send + 'static {
    /// Writes what fits, and may wait for that.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Waits until a write does not end with [`io::ErrorKind::WouldBlock`], or a while is over.
    fn wait(&mut self);
}

struct StandardError;

impl Output for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Not through the standard library: its lock would be held while a reader is stalled.
        Ok(rustix::io::write(standard::error(), bytes)?)
    }

    fn wait(&mut self) {
        if standard::wait_until_writable(standard::error(), Some(RETRY_MAX)).is_err() {
            thread::sleep(RETRY_MIN);
        }
    }
}

/// A handle on the queue.
pub(super) struct Queue {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    filled: Condvar,
    /// There is nothing more to write, or it fails.
    settled: Condvar,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// A line is being written.
    writing: bool,
    /// The newest attempt failed.
    failing: bool,
    /// Nobody writes: there is no thread.
    abandoned: bool,
}

enum Entry {
    Line(Vec<u8>),
    /// So many lines found no place here.
    Lost(u64),
}

impl Queue {
    /// A queue that is written to standard error.
    pub(super) fn start() -> Self {
        Self::start_with(StandardError)
    }

    fn start_with(output: impl Output) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = shared.clone();
        let thread = thread::Builder::new()
            .name("log".into())
            .spawn(move || writer.write_for_ever(output));
        // A machine out of threads: better a node without a log than none.
        shared.lock().abandoned = thread.is_err();
        Self { shared }
    }

    /// Takes a line, with its end, or counts it as lost.
    pub(super) fn push(&self, line: Vec<u8>) {
        self.shared.push(line);
    }

    /// Waits until everything is written, it turns out that it cannot be, or `limit` is over.
    pub(super) fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        while (state.writing || !state.entries.is_empty()) && !state.failing && !state.abandoned {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.shared.settled.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    /// The state is whole whenever the lock is free: no code under it panics half-way.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: Vec<u8>) {
        let mut state = self.lock();
        if state.abandoned {
            return;
        }
        let cost = line.len() + LINE_OVERHEAD_BYTES;
        if state.bytes + cost <= QUEUED_BYTES_MAX {
            state.bytes += cost;
            state.entries.push_back(Entry::Line(line));
        } else if let Some(Entry::Lost(lines)) = state.entries.back_mut() {
            *lines += 1;
        } else {
            state.entries.push_back(Entry::Lost(1));
        }
        self.filled.notify_one();
    }

    fn next(&self) -> Entry {
        let mut state = self.lock();
        state.writing = false;
        loop {
            if let Some(entry) = state.entries.pop_front() {
                if let Entry::Line(line) = &entry {
                    state.bytes -= line.len() + LINE_OVERHEAD_BYTES;
                }
                state.writing = true;
                return entry;
            }
            self.settled.notify_all();
            let waited = self.filled.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn note_outcome(&self, failing: bool) {
        let mut state = self.lock();
        state.failing = failing;
        if failing {
            self.settled.notify_all();
        }
    }

    fn write_for_ever(&self, mut output: impl Output) {
        let mut trouble = None;
        loop {
            let line = match self.next() {
                Entry::Line(line) => line,
                Entry::Lost(lines) => {
                    let why = match trouble.take() {
                        Some(error) => format!("standard error could not be written: {error}"),
                        None => "whatever reads standard error is too slow".into(),
                    };
                    let text = format!("{lines} lines of the log are lost here: {why}");
                    own_line(&Level::WARN, &text)
                }
            };
            if let Some(error) = self.write(&mut output, &line) {
                trouble = Some(error);
            }
        }
    }

    /// Writes a line, however long that takes; gives the newest error that was met.
    fn write(&self, output: &mut impl Output, line: &[u8]) -> Option<io::Error> {
        let mut rest = line;
        let mut pause = RETRY_MIN;
        let mut met = None;
        while !rest.is_empty() {
            match output.write(rest) {
                Ok(written @ 1..) => {
                    rest = &rest[written..];
                    pause = RETRY_MIN;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => output.wait(),
                failed => {
                    met = failed.err().or(met);
                    self.note_outcome(true);
                    thread::sleep(pause);
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
        if met.is_some() {
            self.note_outcome(false);
        }
        met
    }
}

impl<'a> MakeWriter<'a> for &'static Queue {
    type Writer = OneLine;

    fn make_writer(&'a self) -> OneLine {
        OneLine {
            queue: self,
            text: Vec::new(),
        }
    }
}

/// One line on its way into the queue.
pub(super) struct OneLine {
    queue: &'static Queue,
    text: Vec<u8>,
}

impl Write for OneLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for OneLine {
    fn drop(&mut self) {
        self.queue.push(cut(std::mem::take(&mut self.text)));
    }
}

/// Cuts a line that is too long, between two characters.
fn cut(mut line: Vec<u8>) -> Vec<u8> {
    if line.len() > LINE_BYTES_MAX {
        let mut end = LINE_BYTES_MAX - CUT.len();
        // Bytes within a character begin with the bits 10.
        while end > 0 && line[end] & 0xc0 == 0x80 {
            end -= 1;
        }
        line.truncate(end);
        line.extend_from_slice(CUT);
    }
    line
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// What a write comes to.
    enum Answer {
        Takes(usize),
        Fails(io::ErrorKind),
    }

    /// Does what the test says, write by write, and tells what was written.
    struct Scripted {
        answers: mpsc::Receiver<Answer>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Output for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.answers.recv() {
                Ok(Answer::Takes(most)) => {
                    let taken = bytes.len().min(most);
                    let _ = self.written.send(bytes[..taken].to_vec());
                    Ok(taken)
                }
                Ok(Answer::Fails(kind)) => Err(kind.into()),
                Err(_) => loop {
                    thread::park();
                },
            }
        }

        fn wait(&mut self) {}
    }

    fn scripted() -> (Queue, mpsc::Sender<Answer>, mpsc::Receiver<Vec<u8>>) {
        let (answer, answers) = mpsc::channel();
        let (written, output) = mpsc::channel();
        let queue = Queue::start_with(Scripted { answers, written });
        (queue, answer, output)
    }

    fn text(output: &mpsc::Receiver<Vec<u8>>) -> String {
        let bytes = output.recv_timeout(Duration::from_secs(30));
        String::from_utf8(bytes.expect("a write")).expect("text")
    }

    #[test]
    fn a_stalled_reader_costs_lines_which_are_counted_where_they_are_missing() {
        let (queue, answer, output) = scripted();
        // The thread is stuck with the first; all others are pushed at once.
        let line = vec![b'x'; 1000];
        let fit = QUEUED_BYTES_MAX / (line.len() + LINE_OVERHEAD_BYTES);
        queue.push(b"first\n".to_vec());
        answer.send(Answer::Takes(usize::MAX)).unwrap();
        assert_eq!(text(&output), "first\n");
        queue.push(b"second\n".to_vec());
        while !queue.shared.lock().entries.is_empty() {
            thread::yield_now();
        }
        for _ in 0..fit + 7 {
            queue.push(line.clone());
        }
        assert!(queue.shared.lock().bytes <= QUEUED_BYTES_MAX);
        for _ in 0..fit + 2 {
            answer.send(Answer::Takes(usize::MAX)).unwrap();
        }
        assert_eq!(text(&output), "second\n");
        for _ in 0..fit {
            assert_eq!(text(&output).len(), 1000);
        }
        let report = text(&output);
        assert!(
            report.contains("7 lines of the log are lost here"),
            "{report}"
        );
        queue.push(b"later\n".to_vec());
        answer.send(Answer::Takes(usize::MAX)).unwrap();
        assert_eq!(text(&output), "later\n");
        queue.flush(Duration::from_secs(30));
    }

    #[test]
    fn what_cannot_be_written_is_written_later_and_whole() {
        let (queue, answer, output) = scripted();
        queue.push("one\n".into());
        queue.push("two\n".into());
        for next in [
            Answer::Fails(io::ErrorKind::StorageFull),
            Answer::Fails(io::ErrorKind::Interrupted),
            Answer::Fails(io::ErrorKind::WouldBlock),
            Answer::Takes(0),
            Answer::Takes(2),
            Answer::Fails(io::ErrorKind::BrokenPipe),
            Answer::Takes(9),
            Answer::Takes(9),
        ] {
            answer.send(next).unwrap();
        }
        let parts = [(); 4].map(|()| text(&output));
        assert_eq!(parts, ["", "on", "e\n", "two\n"]);
    }

    #[test]
    fn the_end_of_a_process_waits_neither_for_a_stalled_reader_nor_for_a_full_disk() {
        let (queue, answer, _output) = scripted();
        queue.push(b"stuck\n".to_vec());
        let begun = Instant::now();
        queue.flush(Duration::from_millis(50));
        assert!(
            begun.elapsed() >= Duration::from_millis(50),
            "it might yet be written"
        );
        answer
            .send(Answer::Fails(io::ErrorKind::StorageFull))
            .unwrap();
        queue.flush(Duration::from_secs(3600));
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        assert_eq!(cut(b"short\n".to_vec()), b"short\n");
        for shift in 0..3 {
            let long = "x".repeat(shift) + &"ü€".repeat(1000) + "\n";
            let line = String::from_utf8(cut(long.into_bytes())).unwrap();
            assert!(line.len() <= LINE_BYTES_MAX && line.ends_with("…\n"));
        }
    }
}
