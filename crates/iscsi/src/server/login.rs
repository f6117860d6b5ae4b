//! The login phase of a connection: who it is, and what it is let in to.
//!
//! Nothing of a session exists before [`open`] has found a place for it; a connection that ends in
//! here leaves nothing behind but a note of its failure.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;

use aws_lc_rs::rand::fill;
use holdfast_name::IscsiName;
use holdfast_path::Path;
use holdfast_scsi::ports::SinglePort;
use holdfast_scsi::{Nexus, TargetPort};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tracing::warn;

use super::Server;
use super::connection::{End, NodeFront};
use super::input::Input;
use super::output::Output;
use crate::chap::Algorithm;
use crate::login::{
    Admittance, Challenge, FullFeature, Login, LoginStatus, Policy, SessionKind, Step,
};
use crate::pdu::framing::{Decoder, Digests};

/// Longest data segment of a login request: the default that holds until the login ends.
const LOGIN_SEGMENT_BYTES_MAX: usize = 8192;

/// Answers login requests until the initiator is let in.
pub(super) async fn log_in(
    server: &Rc<Server>,
    stream: &TcpStream,
    address: IpAddr,
    input: &mut Input,
) -> Result<Box<FullFeature>, End> {
    let policy = NodePolicy {
        server,
        challenges: RefCell::default(),
    };
    let decoder = Decoder {
        digests: Digests::default(),
        data_bytes_max: LOGIN_SEGMENT_BYTES_MAX,
    };
    let mut login = Login::default();
    loop {
        let pdu = loop {
            if let Some(pdu) = decoder.decode(&mut input.buffer)? {
                break pdu;
            }
            stream.readable().await?;
            input.receive(stream, &decoder)?;
        };
        // Many connections may have been open when the first of them failed.
        let admission = &server.admission;
        if admission
            .borrow()
            .has_failed_too_often(address, server.now())
        {
            return Err(End::TooManyFailures);
        }
        match login.handle(&pdu, &policy) {
            Step::Reply(next, response) => {
                send_all(stream, response).await?;
                login = *next;
            }
            Step::Established(session) => return Ok(session),
            Step::Refused(response, status) => {
                if status == LoginStatus::AuthenticationFailed {
                    admission.borrow_mut().failed(address, server.now());
                    sleep(server.limits.failure_delay).await;
                }
                send_all(stream, response).await?;
                return Err(End::Refused(status));
            }
            Step::Close => return Err(End::NotALogin),
        }
    }
}

/// Opens what the session is for, ending the session that the nexus may have had.
pub(super) async fn open(
    server: &Rc<Server>,
    login: &FullFeature,
) -> Result<NodeFront, LoginStatus> {
    let initiator = login.initiator.shared();
    let SessionKind::Normal(iqn) = &login.kind else {
        let server = server.clone();
        return Ok(NodeFront {
            server,
            initiator,
            target: None,
            attachment: None,
            path: Path::own(),
            place: None,
        });
    };
    let iqn = iqn.shared();
    // Looked up again: the volume may have gone while the login went on.
    let target = server
        .targets
        .open(&iqn, &initiator)
        .ok_or(LoginStatus::NotFound)?;
    let nexus = Nexus {
        initiator: initiator.clone(),
        isid: login.isid,
        target_port: target.relative_port_id,
    };
    let (iqn_of_place, credential) = (iqn.clone(), login.credential);
    let sessions = &server.sessions;
    let place = sessions
        .claim(iqn_of_place, nexus.clone(), credential)
        .await;
    // From here on whoever takes the target away finds the session in the table; what was taken
    // away before is seen now.
    let target = server
        .targets
        .open(&iqn, &initiator)
        .ok_or(LoginStatus::NotFound)?;
    if !target.auth.accepts(login.credential) {
        return Err(LoginStatus::AuthenticationFailed);
    }
    let (group, relative_id) = (target.portal_group_tag, target.relative_port_id);
    let groups = match &target.port_groups {
        Some(groups) => groups.clone(),
        None => Rc::new(SinglePort { group, relative_id }),
    };
    let port = TargetPort {
        target: iqn.clone(),
        group,
        relative_id,
        groups,
    };
    let path = server.new_path();
    let attachment = server
        .unit(&iqn, &target)
        .attach(nexus, target.device, port, path.clone());
    let server = server.clone();
    Ok(NodeFront {
        server,
        initiator,
        target: Some(iqn),
        attachment: Some(attachment),
        path,
        place: Some(place),
    })
}

/// Writes one login PDU; these carry no digests.
pub(super) async fn send_all(stream: &TcpStream, pdu: crate::pdu::Pdu) -> Result<(), End> {
    let mut output = Output::default();
    output.push(pdu, Digests::default());
    loop {
        output.write_to(stream)?;
        if output.is_empty() {
            return Ok(());
        }
        stream.writable().await?;
    }
}

/// What the login asks of the node.
struct NodePolicy<'a> {
    server: &'a Server,
    challenges: RefCell<Vec<Vec<u8>>>,
}

impl Policy for NodePolicy<'_> {
    fn admit(&self, kind: &SessionKind, initiator: &IscsiName) -> Result<Admittance, LoginStatus> {
        let targets = &self.server.targets;
        let SessionKind::Normal(iqn) = kind else {
            return Ok(Admittance {
                auth: targets.discovery_auth(),
                portal_group_tag: 0,
            });
        };
        if let Some(address) = targets.redirect(iqn, initiator) {
            return Err(LoginStatus::MovedTemporarily(address));
        }
        let target = targets.open(iqn, initiator).ok_or(LoginStatus::NotFound)?;
        if targets.is_unreachable(iqn) {
            return Err(LoginStatus::ServiceUnavailable);
        }
        if target.auth.shares_a_secret() {
            warn!(
                target = %iqn,
                "the CHAP secrets of both directions are equal: login refused"
            );
        }
        Ok(Admittance {
            auth: target.auth,
            portal_group_tag: target.portal_group_tag,
        })
    }

    fn issue_challenge(&self, algorithm: Algorithm) -> Challenge {
        let mut identifier = [0];
        let mut bytes = vec![0; algorithm.response_bytes()];
        for random in [&mut identifier[..], &mut bytes[..]] {
            // The kernel's generator does not fail once it is seeded; without it there is no
            // authentication.
            fill(random).expect("the operating system provides randomness");
        }
        self.server.challenges.borrow_mut().insert(bytes.clone());
        self.challenges.borrow_mut().push(bytes.clone());
        Challenge {
            identifier: identifier[0],
            bytes,
        }
    }

    fn is_outstanding(&self, challenge: &[u8]) -> bool {
        self.server.challenges.borrow().contains(challenge)
    }
}

impl Drop for NodePolicy<'_> {
    fn drop(&mut self) {
        let mut outstanding = self.server.challenges.borrow_mut();
        for challenge in self.challenges.borrow().iter() {
            outstanding.remove(challenge);
        }
    }
}
