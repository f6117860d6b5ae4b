//! The table of tasks and the queue of those that want to be polled.
//!
//! A task's key names its slot and the slot's generation, so a waker that outlives its task
//! wakes nobody.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use futures::future::LocalBoxFuture;

use super::ProcessId;
use crate::random::Random;

/// Keys of the tasks to poll. Wakers must be `Send`, so this alone is behind a lock.
#[derive(Clone, Default)]
pub(super) struct ReadyQueue {
    keys: Arc<Mutex<Vec<u64>>>,
}

impl ReadyQueue {
    pub(super) fn push(&self, key: u64) {
        self.with(|keys| keys.push(key));
    }

    pub(super) fn append(&self, more: &mut Vec<u64>) {
        self.with(|keys| keys.append(more));
    }

    /// Takes a random key.
    pub(super) fn take(&self, random: &Random) -> Option<u64> {
        self.with(|keys| match keys.len() {
            0 => None,
            1 => keys.pop(),
            several => Some(keys.swap_remove(random.below(several as u64) as usize)),
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Vec<u64>) -> T) -> T {
        // A panic elsewhere leaves a list of keys intact.
        act(&mut self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A future and what wakes it.
pub(super) struct Body {
    pub(super) future: LocalBoxFuture<'static, ()>,
    pub(super) waker: Waker,
    task: Arc<TaskWaker>,
}

impl Body {
    /// Queues the task unless it is queued.
    pub(super) fn wake(&self) {
        self.task.wake_by_ref();
    }

    /// Says that the task has left the queue.
    pub(super) fn taken_from_queue(&self) {
        self.task.queued.store(false, Ordering::Relaxed);
    }
}

struct TaskWaker {
    key: u64,
    queued: AtomicBool,
    ready: ReadyQueue,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.push(self.key);
        }
    }
}

/// A living task.
pub(super) struct Occupant {
    pub(super) process: ProcessId,
    pub(super) name: &'static str,
    pub(super) aborted: bool,
    /// Absent while the task is being polled.
    pub(super) body: Option<Body>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    occupant: Option<Occupant>,
}

/// All living tasks.
#[derive(Default)]
pub(super) struct Tasks {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Tasks {
    /// Adds a task and queues it.
    pub(super) fn add(
        &mut self,
        process: ProcessId,
        name: &'static str,
        future: LocalBoxFuture<'static, ()>,
        ready: &ReadyQueue,
    ) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        let key = key_of(slot.generation, index);
        let queued = AtomicBool::new(false);
        let task = Arc::new(TaskWaker {
            key,
            queued,
            ready: ready.clone(),
        });
        let body = Body {
            future,
            waker: Waker::from(task.clone()),
            task,
        };
        body.wake();
        slot.occupant = Some(Occupant {
            process,
            name,
            aborted: false,
            body: Some(body),
        });
        key
    }

    /// The task of this key, if it still lives.
    pub(super) fn get(&mut self, key: u64) -> Option<&mut Occupant> {
        let slot = self.slots.get_mut(key as u32 as usize)?;
        if slot.generation != (key >> 32) as u32 {
            return None;
        }
        slot.occupant.as_mut()
    }

    /// Removes a task whose body has been taken out, unless it is gone already.
    pub(super) fn remove_if_living(&mut self, key: u64) {
        if self.get(key).is_some() {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: u64) {
        let index = key as u32;
        let slot = &mut self.slots[index as usize];
        let occupant = slot.occupant.take();
        assert!(
            occupant.is_some_and(|occupant| occupant.body.is_none()),
            "a future must not be dropped inside the executor"
        );
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
    }

    /// Removes all tasks of a process and hands out their futures, to be dropped outside.
    pub(super) fn remove_all(&mut self, process: ProcessId) -> Vec<Body> {
        let mut bodies = Vec::new();
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let Some(occupant) = &mut slot.occupant else {
                continue;
            };
            if occupant.process == process {
                bodies.extend(occupant.body.take());
                let key = key_of(slot.generation, index as u32);
                self.remove(key);
            }
        }
        bodies
    }
}

fn key_of(generation: u32, index: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}
