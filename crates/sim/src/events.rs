//! The log lines (`tracing` events) of the code under test, as text of the run's trace.
//!
//! They do not enter the hash: a changed log line must not change what a seed means.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::rc::Rc;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::executor::Executor;
use crate::trace::Trace;

thread_local! {
    static TARGET: RefCell<Option<Target>> = const { RefCell::new(None) };
}

struct Target {
    executor: Rc<Executor>,
    trace: Rc<Trace>,
}

/// Sends this thread's log lines to the trace until dropped.
pub(crate) struct Capture {
    _subscriber: DefaultGuard,
}

impl Capture {
    /// Captures if the trace wants text; else log lines go nowhere.
    pub(crate) fn start(executor: &Rc<Executor>, trace: &Rc<Trace>) -> Self {
        if trace.wants_text() {
            let target = Target {
                executor: executor.clone(),
                trace: trace.clone(),
            };
            TARGET.set(Some(target));
        }
        Self {
            _subscriber: tracing::subscriber::set_default(Lines),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        TARGET.take();
    }
}

struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG
            && metadata.target().starts_with("holdfast")
            && TARGET.with_borrow(Option::is_some)
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        TARGET.with_borrow(|target| {
            let Some(Target { executor, trace }) = target else {
                return;
            };
            let mut line = Line(format!(
                "{} {} {}:",
                executor.polled_process(),
                event.metadata().level(),
                event.metadata().target()
            ));
            event.record(&mut line);
            trace.remark(executor.now_ns(), &line.0);
        });
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
