//! One `io_uring` per shard thread, shared by all its disks.
//!
//! Promises: a buffer and its file stay alive until the kernel has reported the operation,
//! whether or not anyone still waits for it; nothing polls: the kernel signals an eventfd that
//! the shard's event loop watches.
//!
//! An operation's life:
//!
//! ```text
//!   run() ─► waiting ─► in the kernel ─► Done ─► taken by its future
//!               ▲            │  │
//!               └─ short ────┘  └─► Abandoned (future dropped) ─► freed on completion
//! ```
//!
//! Invariant: `in_kernel` counts exactly the slots whose entry the kernel holds, and never
//! exceeds [`COMPLETION_ENTRIES`], so that the completion queue cannot overflow.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use io_uring::{IoUring, opcode, squeue, types};
use tokio::io::unix::AsyncFd;

use crate::buffer::{Buffer, PAGE_BYTES};

/// Entries submitted with one system call at most.
const SUBMISSION_ENTRIES: u32 = 256;
/// Operations that the kernel holds at most; more wait in user space.
const COMPLETION_ENTRIES: u32 = 1024;
const _: () = assert!(SUBMISSION_ENTRIES <= COMPLETION_ENTRIES);

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Fills the buffer.
    Read,
    /// Writes the buffer.
    Write,
    /// `fdatasync`.
    Sync,
}

/// The ring of one shard thread.
pub(super) struct Ring {
    state: RefCell<State>,
    driver: Cell<Option<Waker>>,
    /// The shard has ended: nobody would take completions in.
    stopped: Cell<bool>,
}

impl Ring {
    /// Sets up a ring and spawns its driver task on the current `LocalSet`.
    pub(super) fn start() -> io::Result<Rc<Self>> {
        let uring = set_up()?;
        let events = event_fd()?;
        uring.submitter().register_eventfd(events.as_raw_fd())?;
        // SAFETY: an `OwnedFd` names one open descriptor for as long as it lives, and here it
        // lives as long as its registration.
        let events = unsafe { AsyncFd::register(events) }?;
        let ring = Rc::new(Self {
            state: RefCell::new(State {
                uring,
                slots: Vec::new(),
                free: Vec::new(),
                waiting: VecDeque::new(),
                in_kernel: 0,
            }),
            driver: Cell::new(None),
            stopped: Cell::new(false),
        });
        let stop = StopOnDrop(Rc::downgrade(&ring));
        tokio::task::spawn_local(drive(stop, events));
        Ok(ring)
    }

    /// Whether the shard that started this ring has ended.
    pub(super) fn stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Does `work` at `offset` of `file` and gives the buffer back. Work starts with this call,
    /// and goes on if the returned future is dropped.
    pub(super) fn run(
        self: &Rc<Self>,
        file: Rc<File>,
        work: Work,
        offset: u64,
        buffer: Buffer,
    ) -> impl Future<Output = io::Result<Buffer>> + use<> {
        assert!(
            !self.stopped.get(),
            "a disk was used after its shard had ended"
        );
        let operation = Operation {
            file,
            work,
            offset,
            buffer,
            done: 0,
        };
        let key = self.state.borrow_mut().insert(operation);
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
        Completion {
            ring: self.clone(),
            key,
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
        self.state.get_mut().drain();
    }
}

struct Operation {
    file: Rc<File>,
    work: Work,
    offset: u64,
    buffer: Buffer,
    /// Bytes transferred so far, whole pages.
    done: usize,
}

enum Slot {
    Free,
    Running(Operation, Option<Waker>),
    Abandoned(Operation),
    Done(io::Result<Buffer>),
}

struct State {
    uring: IoUring,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots to hand to the kernel.
    waiting: VecDeque<usize>,
    in_kernel: u32,
}

impl State {
    fn insert(&mut self, operation: Operation) -> usize {
        let slot = Slot::Running(operation, None);
        let key = match self.free.pop() {
            Some(key) => {
                self.slots[key] = slot;
                key
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.waiting.push_back(key);
        key
    }

    fn release(&mut self, key: usize) {
        self.slots[key] = Slot::Free;
        self.free.push(key);
    }

    /// Submits what waits and takes in what is complete. False: the kernel was short of
    /// resources and the caller must come back.
    fn turn(&mut self) -> bool {
        loop {
            self.fill();
            let queue = self.uring.submission();
            let enter = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
            drop(queue);
            if enter && !self.enter(0) {
                self.reap();
                return false;
            }
            let reaped = self.reap();
            // Without progress there is nothing more to do until the eventfd fires.
            if !reaped || self.waiting.is_empty() {
                return true;
            }
        }
    }

    /// Moves waiting operations to the submission queue.
    fn fill(&mut self) {
        while self.in_kernel < COMPLETION_ENTRIES {
            let Some(&key) = self.waiting.front() else {
                return;
            };
            let (Slot::Running(operation, _) | Slot::Abandoned(operation)) = &mut self.slots[key]
            else {
                unreachable!("only unfinished operations wait");
            };
            let entry = entry(operation).user_data(key as u64);
            // SAFETY: the entry points into `operation.buffer`, heap memory that does not move
            // with its slot, and names the descriptor of `operation.file`. Both stay in the
            // slot, untouched, until the completion with this key is reaped (`complete`), and
            // `drain` waits for all completions before the slots are freed.
            if unsafe { self.uring.submission().push(&entry) }.is_err() {
                return;
            }
            self.waiting.pop_front();
            self.in_kernel += 1;
        }
    }

    /// One `io_uring_enter`. False if the kernel is short of resources for the moment.
    fn enter(&self, want: usize) -> bool {
        match self.uring.submit_and_wait(want) {
            Ok(_) => true,
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => false,
                _ => panic!("io_uring_enter on a ring of our own failed: {error}"),
            },
        }
    }

    /// Takes in completions; true if there were any.
    fn reap(&mut self) -> bool {
        let mut any = false;
        loop {
            let next = self.uring.completion().next();
            let Some(completion) = next else { return any };
            any = true;
            self.in_kernel -= 1;
            self.complete(completion.user_data() as usize, completion.result());
        }
    }

    fn complete(&mut self, key: usize, result: i32) {
        match std::mem::replace(&mut self.slots[key], Slot::Free) {
            Slot::Running(mut operation, waker) => match operation.advance(result) {
                Progress::Again => {
                    self.slots[key] = Slot::Running(operation, waker);
                    self.waiting.push_back(key);
                }
                Progress::Ended(outcome) => {
                    self.slots[key] = Slot::Done(outcome.map(|()| operation.buffer));
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
            },
            Slot::Abandoned(mut operation) => match operation.advance(result) {
                // A write that someone stopped waiting for is still carried to its end: half a
                // write is a state that no caller asked for.
                Progress::Again => {
                    self.slots[key] = Slot::Abandoned(operation);
                    self.waiting.push_back(key);
                }
                Progress::Ended(_) => self.release(key),
            },
            Slot::Free | Slot::Done(_) => panic!("the kernel completed operation {key} twice"),
        }
    }

    /// Waits, blocking, until the kernel holds no buffer of ours: direct I/O into memory that
    /// was freed would corrupt whatever lives there next.
    fn drain(&mut self) {
        self.waiting.clear();
        while self.in_kernel > 0 {
            self.enter(1);
            self.reap();
            // The rest of short transfers is not resubmitted: the shard is going away.
            self.waiting.clear();
        }
    }
}

enum Progress {
    Again,
    Ended(io::Result<()>),
}

impl Operation {
    fn advance(&mut self, result: i32) -> Progress {
        let Ok(transferred) = usize::try_from(result) else {
            return match -result {
                libc::EINTR | libc::EAGAIN => Progress::Again,
                errno => Progress::Ended(Err(part_failed(errno, self.done))),
            };
        };
        if self.work == Work::Sync || self.done + transferred == self.buffer.len() {
            return Progress::Ended(Ok(()));
        }
        // Direct I/O has to go on at a page boundary; repeating part of a page is harmless.
        let whole = transferred - transferred % PAGE_BYTES;
        if whole == 0 {
            return Progress::Ended(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("only {transferred} bytes were transferred"),
            )));
        }
        self.done += whole;
        Progress::Again
    }
}

fn entry(operation: &mut Operation) -> squeue::Entry {
    let file = types::Fd(operation.file.as_raw_fd());
    let offset = operation.offset + operation.done as u64;
    let rest = &mut operation.buffer[operation.done..];
    // A longer transfer is cut here and continued as a short one.
    let len = u32::try_from(rest.len()).unwrap_or(1 << 30);
    match operation.work {
        Work::Read => opcode::Read::new(file, rest.as_mut_ptr(), len)
            .offset(offset)
            .build(),
        Work::Write => opcode::Write::new(file, rest.as_ptr(), len)
            .offset(offset)
            .build(),
        Work::Sync => opcode::Fsync::new(file)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
    }
}

/// An error without its number if bytes were transferred before it: nobody may take a half
/// write for one that changed nothing.
pub(super) fn part_failed(errno: i32, done: usize) -> io::Error {
    let error = io::Error::from_raw_os_error(errno);
    match done {
        0 => error,
        _ => io::Error::new(error.kind(), format!("{error}, after {done} bytes")),
    }
}

struct Completion {
    ring: Rc<Ring>,
    key: usize,
}

impl Future for Completion {
    type Output = io::Result<Buffer>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.ring.state.borrow_mut();
        match &mut state.slots[self.key] {
            Slot::Running(_, waker) => {
                if !waker
                    .as_ref()
                    .is_some_and(|waker| waker.will_wake(context.waker()))
                {
                    *waker = Some(context.waker().clone());
                }
                Poll::Pending
            }
            slot @ Slot::Done(_) => match std::mem::replace(slot, Slot::Free) {
                // The slot stays reserved, free of content, until this future is dropped.
                Slot::Done(result) => Poll::Ready(result),
                Slot::Free | Slot::Running(..) | Slot::Abandoned(_) => unreachable!("matched"),
            },
            Slot::Free | Slot::Abandoned(_) => panic!("a completion was polled after its end"),
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        let mut state = self.ring.state.borrow_mut();
        match std::mem::replace(&mut state.slots[self.key], Slot::Free) {
            Slot::Running(operation, _) => state.slots[self.key] = Slot::Abandoned(operation),
            Slot::Free | Slot::Done(_) => state.release(self.key),
            Slot::Abandoned(_) => unreachable!("an operation has one future"),
        }
    }
}

struct StopOnDrop(Weak<Ring>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(ring) = self.0.upgrade() {
            ring.stopped.set(true);
        }
    }
}

/// Submits once per turn of the event loop, however many operations were started in it.
async fn drive(ring: StopOnDrop, events: AsyncFd<OwnedFd>) {
    std::future::poll_fn(|context| {
        let Some(ring) = ring.0.upgrade() else {
            return Poll::Ready(());
        };
        ring.driver.set(Some(context.waker().clone()));
        loop {
            // The eventfd is never read: epoll watches its edges, and every signal is an edge.
            // Readiness is cleared before completions are taken in, so none is missed.
            let signalled = match events.poll_read_ready(context) {
                Poll::Ready(Ok(mut guard)) => {
                    guard.clear_ready();
                    true
                }
                // The event loop is shutting down, and this task with it.
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => false,
            };
            if !ring.state.borrow_mut().turn() {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !signalled {
                return Poll::Pending;
            }
        }
    })
    .await;
}

/// A ring whose completion work runs when we enter the kernel anyway (Linux 6.1), else a plain
/// one. Fails with `EPERM` or `ENOSYS` where the host forbids `io_uring`.
fn set_up() -> io::Result<IoUring> {
    let deferred = IoUring::builder()
        .dontfork()
        .setup_cqsize(COMPLETION_ENTRIES)
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(SUBMISSION_ENTRIES);
    match deferred {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::builder()
            .dontfork()
            .setup_cqsize(COMPLETION_ENTRIES)
            .build(SUBMISSION_ENTRIES),
        outcome => outcome,
    }
}

fn event_fd() -> io::Result<OwnedFd> {
    // SAFETY: eventfd takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
