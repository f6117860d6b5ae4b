//! One session with one target, over one connection (RFC 7143).
//!
//! Promises
//! - Up to `queue_depth` commands run at once, within the window that the target opens.
//! - A target's pings are answered at once, whatever the callers do.
//! - When the session is lost every outstanding command ends with the reason; a write among them
//!   may or may not have taken effect.
//! - Nothing is retried here: UNIT ATTENTION, BUSY and the like are the caller's to judge
//!   ([`crate::Disk`] does).

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::engine::lost;
use crate::error::{Error, LostReason};
use crate::exchange::{Reply, Request};
use crate::login::Purpose;
use crate::options::{Negotiated, SessionOptions};
use crate::pdu::Residual;
use crate::scsi::{self, BlockRange, Capacity, Command, Inquiry};
use crate::text::{self, Keys, TEXT_LIMIT};
use crate::transport::{LoggedIn, Transport, log_in};

/// Redirections to follow in one login; a chain longer than this is a loop.
const REDIRECTIONS_MAX: usize = 4;
/// Unit attentions to clear one after the other; a target queues few.
const ATTENTIONS_MAX: usize = 8;

/// How a session fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Commands are served.
    Good,
    /// The target wants this session to end within so many seconds; commands are still served.
    LogoutRequested {
        /// Time until the target drops the connection.
        seconds: u16,
    },
    /// The session is gone, for this reason.
    Lost(Error),
}

/// What a command that ended with GOOD brought back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOutput {
    /// The bytes read.
    pub data: Bytes,
    /// By how much the transfer differed from what was asked.
    pub residual: Residual,
}

/// A target that a portal offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredTarget {
    /// The target's iSCSI name.
    pub name: String,
    /// Its portals as the target wrote them: `address:port,portal-group`.
    pub portals: Vec<String>,
}

/// A logged-in session. Dropping it closes the connection without a logout.
pub struct Session {
    transport: Rc<Transport>,
    negotiated: Negotiated,
    portal: SocketAddr,
}

impl Session {
    /// Logs in to `target` at `portal`, following redirections.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::LoginTimeout`], [`Error::LoginRefused`],
    /// [`Error::AuthenticationFailed`], [`Error::TargetNotProven`], [`Error::BadOptions`],
    /// [`Error::BadRedirect`], or what ended the connection. No command was executed.
    pub async fn connect(
        portal: SocketAddr,
        target: &str,
        options: &SessionOptions,
    ) -> Result<Self, Error> {
        Self::log_in(portal, Purpose::Target(target.to_owned()), options).await
    }

    /// What login agreed on.
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// The portal that serves the session, after redirections.
    pub fn portal(&self) -> SocketAddr {
        self.portal
    }

    /// Follows how the session fares.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.transport.health()
    }

    /// When the oldest request still without an answer was made.
    pub fn oldest_outstanding(&self) -> Option<Instant> {
        self.transport.oldest()
    }

    /// When the target last sent anything.
    pub fn last_answer(&self) -> Instant {
        self.transport.last_answer()
    }

    /// Whether no command is outstanding.
    pub fn is_idle(&self) -> bool {
        self.transport.is_idle()
    }

    /// Runs any SCSI command.
    ///
    /// # Errors
    /// As the target answered, or the loss of the session. See each [`Error`] for what is then
    /// known about the command's effect.
    pub async fn execute(&self, command: Command) -> Result<CommandOutput, Error> {
        match self.transport.ask(Request::Scsi(command)).await? {
            Reply::Scsi { data, residual } => Ok(CommandOutput { data, residual }),
            other => unreachable!("the engine matched a command with {other:?}"),
        }
    }

    /// READ(16): `range.blocks * block_length` bytes.
    pub async fn read(
        &self,
        lun: u16,
        range: BlockRange,
        block_length: u32,
    ) -> Result<Bytes, Error> {
        let command = Command::read(lun, range, block_length);
        let expected = command.transfer.length();
        let output = self.execute(command).await?;
        full_transfer(expected, &output)?;
        Ok(output.data)
    }

    /// WRITE(16) of `data`, which must fill `range`.
    pub async fn write(&self, lun: u16, range: BlockRange, data: Bytes) -> Result<(), Error> {
        let expected = data.len() as u32;
        full_transfer(
            expected,
            &self.execute(Command::write(lun, range, data)).await?,
        )
    }

    /// SYNCHRONIZE CACHE(16); zero blocks mean "to the end".
    pub async fn synchronize_cache(&self, lun: u16, range: BlockRange) -> Result<(), Error> {
        self.execute(Command::synchronize_cache(lun, range))
            .await
            .map(drop)
    }

    /// UNMAP of `ranges`, at most 4095.
    pub async fn unmap(&self, lun: u16, ranges: &[BlockRange]) -> Result<(), Error> {
        // GOOD alone decides: some targets report a residual for the parameter list.
        self.execute(Command::unmap(lun, ranges)).await.map(drop)
    }

    /// TEST UNIT READY.
    pub async fn test_unit_ready(&self, lun: u16) -> Result<(), Error> {
        self.execute(Command::test_unit_ready(lun)).await.map(drop)
    }

    /// TEST UNIT READY until pending unit attentions are cleared.
    ///
    /// # Errors
    /// The first other error, or the last attention if they do not end.
    pub async fn clear_attentions(&self, lun: u16) -> Result<(), Error> {
        let mut result = self.test_unit_ready(lun).await;
        for _ in 1..ATTENTIONS_MAX {
            match &result {
                Err(error) if error.is_unit_attention() => {}
                Ok(()) | Err(_) => break,
            }
            result = self.test_unit_ready(lun).await;
        }
        result
    }

    /// Standard INQUIRY.
    pub async fn inquiry(&self, lun: u16) -> Result<Inquiry, Error> {
        scsi::parse_inquiry(&self.execute(Command::inquiry(lun, None)).await?.data)
    }

    /// A vital product data page, raw.
    pub async fn inquiry_page(&self, lun: u16, page: u8) -> Result<Bytes, Error> {
        self.execute(Command::inquiry(lun, Some(page)))
            .await
            .map(|output| output.data)
    }

    /// What names the disk itself on every path: the designators of VPD page 83h that belong to
    /// the logical unit.
    pub async fn unit_designators(&self, lun: u16) -> Result<Vec<Vec<u8>>, Error> {
        scsi::parse_unit_designators(&self.inquiry_page(lun, 0x83).await?)
    }

    /// READ CAPACITY(16).
    pub async fn read_capacity(&self, lun: u16) -> Result<Capacity, Error> {
        scsi::parse_capacity(&self.execute(Command::read_capacity(lun)).await?.data)
    }

    /// REPORT LUNS.
    pub async fn report_luns(&self) -> Result<Vec<u16>, Error> {
        scsi::parse_luns(&self.execute(Command::report_luns()).await?.data)
    }

    /// NOP-Out and its answer: proves that the target's iSCSI layer lives.
    pub async fn ping(&self) -> Result<(), Error> {
        self.transport.ask(Request::Ping).await.map(drop)
    }

    /// SendTargets; "All" is for discovery sessions, the empty string asks for this target.
    pub async fn send_targets(&self, which: &str) -> Result<Vec<DiscoveredTarget>, Error> {
        let mut keys = Keys::default();
        keys.add("SendTargets", which);
        let mut request = Request::Text {
            text: keys.into_bytes(),
            resume: None,
        };
        let mut gathered = Vec::new();
        loop {
            let Reply::Text { data, resume } = self.transport.ask(request).await? else {
                unreachable!("the engine matched a text request with another answer")
            };
            gathered.extend_from_slice(&data);
            if gathered.len() > TEXT_LIMIT {
                return Err(Error::MalformedAnswer {
                    command: "SendTargets",
                });
            }
            if resume.is_none() {
                return parse_targets(&gathered);
            }
            request = Request::Text {
                text: Bytes::new(),
                resume,
            };
        }
    }

    /// Logs out and closes the connection. Commands still outstanding end as lost.
    ///
    /// # Errors
    /// [`Error::TargetFailure`] if the target answered other than "closed"; the session is gone
    /// in every case.
    pub async fn logout(self) -> Result<(), Error> {
        self.logout_shared().await
    }

    pub(crate) async fn logout_shared(&self) -> Result<(), Error> {
        let reply = self.transport.ask(Request::Logout).await;
        self.abandon(LostReason::ClosedHere);
        match reply? {
            Reply::LoggedOut { response: 0 } => Ok(()),
            Reply::LoggedOut { response } => Err(Error::TargetFailure { response }),
            other => unreachable!("the engine matched a logout with {other:?}"),
        }
    }

    /// Closes the connection at once; outstanding commands end with `reason`.
    pub fn abandon(&self, reason: LostReason) {
        self.transport.fail(lost(reason));
    }

    /// Leaves as hosts do that reset a path: with a TCP RST, so that nothing that waits in this
    /// machine's socket is sent any more. Outstanding commands end with `reason`. When this
    /// returns, the reset is on its way.
    pub async fn reset(&self, reason: LostReason) {
        self.transport.reset(lost(reason)).await;
    }

    async fn log_in(
        portal: SocketAddr,
        purpose: Purpose,
        options: &SessionOptions,
    ) -> Result<Self, Error> {
        let limit = options.login_limit;
        let mut at = portal;
        within(portal, limit, async {
            let mut address = String::new();
            for _ in 0..=REDIRECTIONS_MAX {
                match log_in(at, options, &purpose).await? {
                    LoggedIn::Ready {
                        stream,
                        decoder,
                        outcome,
                    } => {
                        let negotiated = outcome.negotiated.clone();
                        let depth = options.queue_depth;
                        let transport = Transport::start(stream, decoder, outcome, depth);
                        return Ok(Self {
                            transport,
                            negotiated,
                            portal: at,
                        });
                    }
                    LoggedIn::Redirected(to) => {
                        tracing::debug!(from = %at, %to, "login redirected");
                        at = resolve(&to).await?;
                        address = to;
                    }
                }
            }
            Err(Error::BadRedirect { address })
        })
        .await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.abandon(LostReason::ClosedHere);
    }
}

/// Lists the targets that `portal` offers to this initiator, through a discovery session.
///
/// # Errors
/// As [`Session::connect`].
pub async fn discover(
    portal: SocketAddr,
    options: &SessionOptions,
) -> Result<Vec<DiscoveredTarget>, Error> {
    let session = Session::log_in(portal, Purpose::Discovery, options).await?;
    within(portal, options.login_limit, async {
        let targets = session.send_targets("All").await?;
        // The list is here; how the goodbye ends changes nothing.
        let _ = session.logout().await;
        Ok(targets)
    })
    .await
}

async fn within<T>(
    portal: SocketAddr,
    limit: std::time::Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(limit, work)
        .await
        .unwrap_or(Err(Error::LoginTimeout { portal, limit }))
}

async fn resolve(address: &str) -> Result<SocketAddr, Error> {
    if let Ok(address) = address.parse() {
        return Ok(address);
    }
    let bad = || Error::BadRedirect {
        address: address.to_owned(),
    };
    let is_v6_without_port = address.ends_with(']');
    let has_port = !is_v6_without_port && address.contains(':');
    // 3260 is the registered port (RFC 7143 section 13.8).
    let with_port = if has_port {
        address.to_owned()
    } else {
        format!("{address}:3260")
    };
    let mut found = tokio::net::lookup_host(with_port)
        .await
        .map_err(|_| bad())?;
    found.next().ok_or_else(bad)
}

fn full_transfer(expected: u32, output: &CommandOutput) -> Result<(), Error> {
    match output.residual {
        Residual::None | Residual::Overflow(_) => Ok(()),
        Residual::Underflow(missing) => Err(Error::ShortTransfer {
            expected,
            transferred: expected.saturating_sub(missing),
        }),
    }
}

fn parse_targets(text: &[u8]) -> Result<Vec<DiscoveredTarget>, Error> {
    let malformed = || Error::MalformedAnswer {
        command: "SendTargets",
    };
    let mut targets: Vec<DiscoveredTarget> = Vec::new();
    for (key, value) in text::pairs(text).map_err(|_| malformed())? {
        match key {
            "TargetName" => targets.push(DiscoveredTarget {
                name: value.to_owned(),
                portals: Vec::new(),
            }),
            "TargetAddress" => {
                targets
                    .last_mut()
                    .ok_or_else(malformed)?
                    .portals
                    .push(value.to_owned());
            }
            _ => {}
        }
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted_target::{Departure, ScriptedTarget, medium, on_one_thread};

    #[test]
    fn discovery_text_lists_targets_with_their_portals() {
        let text = b"TargetName=a\0TargetAddress=1.2.3.4:5,1\0TargetAddress=[::1]:5,2\0\
                     TargetName=b\0";
        let targets = parse_targets(text).unwrap();
        assert_eq!(targets[0].portals, ["1.2.3.4:5,1", "[::1]:5,2"]);
        assert_eq!(
            (targets[1].name.as_str(), targets[1].portals.len()),
            ("b", 0)
        );
        assert!(parse_targets(b"TargetAddress=1.2.3.4:5,1\0").is_err());
    }

    async fn departure_of(leave: impl AsyncFnOnce(Session)) -> Departure {
        let target = ScriptedTarget::start(&medium()).await;
        let options = SessionOptions::new("iqn.2026-11.test:leaver");
        let session = Session::connect(target.portal, "iqn.2026-11.test:disk", &options).await;
        leave(session.unwrap()).await;
        loop {
            if let Some(departure) = target.script.departure.get() {
                return departure;
            }
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_session_leaves_by_the_end_of_its_stream_or_by_a_reset() {
        on_one_thread(async {
            let closed = departure_of(async |session| session.abandon(LostReason::Silent)).await;
            assert_eq!(closed, Departure::Closed);
            let reset = async |session: Session| session.reset(LostReason::Silent).await;
            assert_eq!(departure_of(reset).await, Departure::Reset);
        });
    }

    #[test]
    fn commands_of_a_session_that_is_reset_end_as_lost() {
        on_one_thread(async {
            let target = ScriptedTarget::start(&medium()).await;
            let options = SessionOptions::new("iqn.2026-11.test:leaver");
            let session = Session::connect(target.portal, "iqn.2026-11.test:disk", &options).await;
            let session = session.unwrap();
            target.script.is_mute.send_replace(true);
            let (first, second, ()) = tokio::join!(
                session.test_unit_ready(0),
                session.test_unit_ready(0),
                session.reset(LostReason::Silent),
            );
            let silent = Err(lost(LostReason::Silent));
            assert_eq!((first, second), (silent.clone(), silent));
        });
    }
}
