//! Online linearizability of blocks as registers.
//!
//! Operations are reported when they begin and when their outcome is known, in the order in
//! which this happens; time stamps serve the report only. Writes carry unique values, except
//! writes of zeroes. What each outcome allows:
//!
//! | outcome            | allows                                                              |
//! |--------------------|---------------------------------------------------------------------|
//! | write acknowledged | takes effect at one moment between begin and acknowledgement        |
//! | write unknown      | takes effect at one moment after its begin, however late, or never  |
//! | write given up     | takes effect at one moment up to the time that was told, or never   |
//! | write refused      | never takes effect                                                  |
//! | read returned      | returns what the register held at one moment between begin and end  |
//! | swap not done      | found another value at one moment between begin and end             |
//! | read failed        | nothing                                                             |
//!
//! The verdict is exact (no false alarm, nothing missed) for each block; see `register` for
//! the method. Memory grows with open and unknown operations, not with the history.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use thiserror::Error;

use crate::oracle::content::{BlockAddress, Value};
use crate::trace::Timestamp;

mod register;
#[cfg(test)]
mod tests;

use register::{Kind, Outcome, Register};

/// An operation on one block between its begin and its outcome.
#[derive(Debug)]
#[must_use = "an operation's outcome has to be reported"]
pub struct Ticket {
    address: BlockAddress,
    number: u64,
}

/// A result that no order of the operations explains.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("block {} of volume {} is not linearizable: {what}\n{}", .address.block,
    .address.volume, .history.join("\n"))]
pub struct Violation {
    /// Where.
    pub address: BlockAddress,
    /// The operation that could not be explained, in words.
    pub what: String,
    /// The last operations on the block, oldest first.
    pub history: Vec<String>,
}

/// The checker of all blocks.
#[derive(Debug, Default)]
pub struct Checker {
    blocks: BTreeMap<BlockAddress, Block>,
    operations: u64,
}

#[derive(Debug, Default)]
struct Block {
    register: Register,
    history: VecDeque<Line>,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    now_ns: u64,
    client: u64,
    number: u64,
    event: Event,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Began(Kind),
    Ended(Outcome),
}

/// Lines kept per block for the report of a violation, besides those without a verdict yet.
const HISTORY_LINES: usize = 40;

impl Checker {
    /// A checker of blocks that are all zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Operations whose outcome was reported so far.
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Every block that an operation has touched, in ascending order.
    pub fn addresses(&self) -> Vec<BlockAddress> {
        self.blocks.keys().copied().collect()
    }

    /// A client begins to write `value`, unique in the run unless it is zero.
    pub fn begin_write(
        &mut self,
        now_ns: u64,
        client: u64,
        address: BlockAddress,
        value: Value,
    ) -> Ticket {
        self.begin(now_ns, client, address, Kind::Write(value))
    }

    /// A client begins to write `to` if the block holds `from`, as one step.
    pub fn begin_swap(
        &mut self,
        now_ns: u64,
        client: u64,
        address: BlockAddress,
        (from, to): (Value, Value),
    ) -> Ticket {
        self.begin(now_ns, client, address, Kind::Swap { from, to })
    }

    /// A client begins to read.
    pub fn begin_read(&mut self, now_ns: u64, client: u64, address: BlockAddress) -> Ticket {
        self.begin(now_ns, client, address, Kind::Read)
    }

    /// The write was acknowledged.
    pub fn acknowledged(&mut self, now_ns: u64, ticket: Ticket) -> Result<(), Violation> {
        self.end(now_ns, ticket, Outcome::Acknowledged)
    }

    /// Nobody knows whether the write has taken effect, or ever will.
    pub fn unknown(&mut self, now_ns: u64, ticket: Ticket) -> Result<(), Violation> {
        self.end(now_ns, ticket, Outcome::Unknown)
    }

    /// The write takes effect no later than at `until_ns`, if it ever does: what its path had under
    /// way when it was given up is dead from then on.
    pub fn given_up(
        &mut self,
        now_ns: u64,
        ticket: Ticket,
        until_ns: u64,
    ) -> Result<(), Violation> {
        self.end(now_ns, ticket, Outcome::UnknownUntil(until_ns))
    }

    /// The write was refused and has no effect, or the read ended without data.
    pub fn failed(&mut self, now_ns: u64, ticket: Ticket) -> Result<(), Violation> {
        self.end(now_ns, ticket, Outcome::Void)
    }

    /// The swap was not done: the block did not hold what was to be replaced.
    pub fn differed(&mut self, now_ns: u64, ticket: Ticket) -> Result<(), Violation> {
        self.end(now_ns, ticket, Outcome::Differed)
    }

    /// The read returned this value.
    pub fn returned(&mut self, now_ns: u64, ticket: Ticket, value: Value) -> Result<(), Violation> {
        self.end(now_ns, ticket, Outcome::Returned(value))
    }

    /// The run is over: open operations stay without outcome.
    pub fn finish(&mut self) -> Result<(), Violation> {
        for (address, block) in &mut self.blocks {
            block
                .register
                .finish()
                .map_err(|number| block.violation(*address, number))?;
        }
        Ok(())
    }

    fn begin(&mut self, now_ns: u64, client: u64, address: BlockAddress, kind: Kind) -> Ticket {
        let block = self.blocks.entry(address).or_default();
        let number = block.register.begin(now_ns, kind);
        block.note(Line {
            now_ns,
            client,
            number,
            event: Event::Began(kind),
        });
        Ticket { address, number }
    }

    fn end(&mut self, now_ns: u64, ticket: Ticket, outcome: Outcome) -> Result<(), Violation> {
        let Ticket { address, number } = ticket;
        self.operations += 1;
        let block = self
            .blocks
            .get_mut(&address)
            .expect("its begin has made the block");
        block.note(Line {
            now_ns,
            client: 0,
            number,
            event: Event::Ended(outcome),
        });
        block
            .register
            .end(now_ns, number, outcome)
            .map_err(|number| block.violation(address, number))
    }
}

impl Block {
    fn note(&mut self, line: Line) {
        // What waits for its verdict stays, and some lines before it.
        while self.history.len() >= HISTORY_LINES + self.register.waiting() {
            self.history.pop_front();
        }
        self.history.push_back(line);
    }

    fn violation(&self, address: BlockAddress, number: u64) -> Violation {
        let legal: Vec<String> = self
            .register
            .present_values()
            .iter()
            .map(|value| value.0.to_string())
            .collect();
        let what = format!(
            "no order of the operations explains #{number}; before it the block held {}",
            legal.join(" or ")
        );
        let end = self
            .history
            .iter()
            .position(|line| line.number == number && matches!(line.event, Event::Ended(_)));
        let shown = end.map_or(self.history.len(), |end| end + 1);
        let history = self
            .history
            .iter()
            .take(shown)
            .map(Line::to_string)
            .collect();
        Violation {
            address,
            what,
            history,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = Timestamp(self.now_ns);
        write!(formatter, "  {at} #{} ", self.number)?;
        match self.event {
            Event::Began(Kind::Write(value)) => {
                write!(formatter, "client {} writes {}", self.client, value.0)
            }
            Event::Began(Kind::Swap { from, to }) => {
                let (client, from, to) = (self.client, from.0, to.0);
                write!(formatter, "client {client} writes {to} if it reads {from}")
            }
            Event::Began(Kind::Read) => write!(formatter, "client {} reads", self.client),
            Event::Ended(Outcome::Acknowledged) => formatter.write_str("acknowledged"),
            Event::Ended(Outcome::Unknown) => formatter.write_str("outcome unknown"),
            Event::Ended(Outcome::UnknownUntil(until_ns)) => {
                write!(
                    formatter,
                    "outcome unknown, dead after {}",
                    Timestamp(until_ns)
                )
            }
            Event::Ended(Outcome::Void) => formatter.write_str("without effect or data"),
            Event::Ended(Outcome::Differed) => formatter.write_str("found another value"),
            Event::Ended(Outcome::Returned(value)) => {
                write!(formatter, "returned {}", value.0)
            }
        }
    }
}
