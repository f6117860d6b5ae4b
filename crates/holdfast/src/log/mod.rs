//! The log on standard error.
//!
//! What it promises: **a log that cannot be written costs lines, never the node.** A line is put
//! into a bounded queue ([`queue`]), from which a thread of its own writes; nothing that logs
//! waits for a disk, a pipe or a terminal, and no error comes back. Lines that find the queue full
//! are counted, and the count is written when lines are written again. How often lines of one kind
//! come is bounded as well ([`limits`]): a stranger who connects all day does not fill a disk.
//!
//! ```text
//!  event ─► filter ─► limits ─► text ─► queue ─(thread "log")─► standard error
//! ```

mod limits;
mod queue;

use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use self::limits::{Limits, Verdict};
use self::queue::Queue;

/// Environment variable with the log filter, as `tracing-subscriber` reads it.
const VARIABLE: &str = "HOLDFAST_LOG";
/// Directives that apply before the requested ones. The Raft library repeats itself as long as a
/// node is down, and the config group logs what matters of it. Name the library to hear it:
/// `HOLDFAST_LOG=info,openraft=info`.
const LIBRARIES: &str = "openraft=off";
/// How long the end of a process waits for its last lines.
const FAREWELL: Duration = Duration::from_millis(500);

static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Logs to standard error from now on, unless the environment says otherwise at this level.
pub(crate) fn start(level: &str) {
    let queue = QUEUE.get_or_init(Queue::start);
    let (filter, complaint) = filter(level, std::env::var(VARIABLE).ok().as_deref());
    let text = tracing_subscriber::fmt::layer()
        .with_writer(queue)
        .with_ansi(std::io::stderr().is_terminal())
        .log_internal_errors(false);
    tracing_subscriber::registry()
        .with(filter)
        .with(Limiter::new(queue))
        .with(text)
        .init();
    if let Some(complaint) = complaint {
        tracing::warn!("{complaint}");
    }
}

/// Lets a panic's message go the way of all lines: the usual one waits for standard error, and a
/// node that must end would stand still.
pub(crate) fn take_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let trace = std::backtrace::Backtrace::capture();
        let trace = match trace.status() {
            std::backtrace::BacktraceStatus::Captured => format!("\n{trace}"),
            _ => String::new(),
        };
        if let Some(queue) = QUEUE.get() {
            queue.push(own_line(&Level::ERROR, &format!("{panic}{trace}")));
        }
        flush();
    }));
}

/// Says something that is no event: the last word of a process.
pub(crate) fn say(text: &str) {
    if let Some(queue) = QUEUE.get() {
        queue.push(text.into());
    }
}

/// Gives the last lines a moment to be written.
pub(crate) fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FAREWELL);
    }
}

/// The filter, and a complaint if the requested one cannot be used.
fn filter(level: &str, asked: Option<&str>) -> (EnvFilter, Option<String>) {
    let usual = || EnvFilter::new(format!("{LIBRARIES},{level}"));
    match asked.map(str::trim) {
        None | Some("") => (usual(), None),
        Some(asked) => match EnvFilter::try_new(format!("{LIBRARIES},{asked}")) {
            Ok(filter) => (filter, None),
            Err(error) => {
                let complaint = format!("{VARIABLE}={asked:?} is no filter ({error}); ignored");
                (usual(), Some(complaint))
            }
        },
    }
}

/// What the clock says, as the log writes it.
pub(crate) fn time() -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

/// A line of the log about itself, in the form of the others.
fn own_line(level: &Level, text: &str) -> Vec<u8> {
    format!("{} {level:>5} {}: {text}\n", time(), module_path!()).into_bytes()
}

/// Leaves out what comes too often.
struct Limiter {
    queue: &'static Queue,
    started: Instant,
    limits: Mutex<Limits>,
}

impl Limiter {
    fn new(queue: &'static Queue) -> Self {
        Self {
            queue,
            started: Instant::now(),
            limits: Mutex::default(),
        }
    }
}

impl<S: Subscriber> Layer<S> for Limiter {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let kind = event.metadata();
        // Levels below `info` appear only on request, and then all of them are wanted.
        if *kind.level() > Level::INFO {
            return true;
        }
        let verdict = self
            .limits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .judge(self.started.elapsed(), kind.callsite(), kind.target());
        match verdict {
            Verdict::Write => true,
            Verdict::WriteAfter { left_out } => {
                let text = format!(
                    "{left_out} lines like the next one ({}) were left out",
                    kind.target()
                );
                self.queue.push(own_line(&Level::INFO, &text));
                true
            }
            Verdict::LeaveOutFirst { pause } => {
                let text = format!(
                    "more lines of this kind ({}) are left out: one in {pause:?} is written from \
                     here on",
                    kind.target()
                );
                self.queue.push(own_line(&Level::INFO, &text));
                false
            }
            Verdict::LeaveOut => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_heard_only_if_it_is_named() {
        for (asked, openraft, ours) in [
            (None, "off", "info"),
            (Some(""), "off", "info"),
            (Some("debug"), "off", "debug"),
            (Some("info"), "off", "info"),
            (Some("info,openraft=warn"), "warn", "info"),
        ] {
            let (filter, complaint) = filter("info", asked);
            assert_eq!(complaint, None);
            let text = filter.to_string();
            let parts: Vec<&str> = text.split(',').collect();
            assert!(parts.contains(&&*format!("openraft={openraft}")), "{text}");
            assert!(parts.contains(&ours), "{text}");
        }
    }

    #[test]
    fn a_filter_that_is_none_is_said_and_does_not_silence_the_node() {
        let (filter, complaint) = filter("info", Some("info,=,x=loud"));
        assert!(filter.to_string().contains("info"));
        assert!(complaint.unwrap().contains(VARIABLE));
    }
}
