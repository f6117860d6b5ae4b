//! What a portal tells a host that comes.

use holdfast_initiator::{Command, Error, Transfer};
use tokio::time::timeout;

use super::ANSWER_LIMIT;
use crate::ledger::Doer;
use crate::world::{Path, World};

/// What a portal tells a host that comes.
pub(super) enum Answer {
    Serves(String),
    Elsewhere(String),
}

impl std::fmt::Display for Answer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Serves(what) => write!(formatter, "serves ({what})"),
            Self::Elsewhere(what) => write!(formatter, "elsewhere ({what})"),
        }
    }
}

/// Logs in, asks whether the unit is ready and what the portal's own group is.
pub(super) async fn probe(world: &World, portal: usize) -> Answer {
    let who = Doer {
        client: 7000,
        portal: portal as u16,
    };
    let path = match world.connect(0, who, ANSWER_LIMIT).await {
        Ok(path) => path,
        Err(error) => return Answer::Elsewhere(error.to_string()),
    };
    let asked = async {
        path.session.test_unit_ready(0).await?;
        let group = path.session.negotiated().portal_group;
        let states = target_port_groups(&path).await?;
        let own = states.iter().find(|(id, _)| Some(*id) == group);
        Ok::<_, Error>(own.map(|(_, state)| *state))
    };
    match timeout(ANSWER_LIMIT, asked).await {
        // Active, optimised or not.
        Ok(Ok(Some(state @ 0..=1))) => Answer::Serves(format!("group state {state}")),
        Ok(Ok(Some(state))) => Answer::Elsewhere(format!("group state {state:#x}")),
        Ok(Ok(None)) => Answer::Serves("no group of its own".to_owned()),
        Ok(Err(error)) => Answer::Elsewhere(error.to_string()),
        Err(_) => Answer::Serves("no answer".to_owned()),
    }
}

/// REPORT TARGET PORT GROUPS (SPC-4 6.37): each group's id and asymmetric access state.
async fn target_port_groups(path: &Path) -> Result<Vec<(u16, u8)>, Error> {
    const ALLOCATION: u32 = 4096;
    let mut cdb = [0; 16];
    cdb[..2].copy_from_slice(&[0xa3, 0x0a]);
    cdb[6..10].copy_from_slice(&ALLOCATION.to_be_bytes());
    let command = Command {
        lun: 0,
        cdb,
        transfer: Transfer::Read(ALLOCATION),
    };
    let data = path.session.execute(command).await?.data;
    let mut groups = Vec::new();
    let mut rest = data.get(4..).unwrap_or(&[]);
    while let [state, _, high, low, _, _, _, ports, ..] = *rest {
        groups.push((u16::from_be_bytes([high, low]), state & 0x0f));
        rest = rest.get(8 + 4 * usize::from(ports)..).unwrap_or(&[]);
    }
    Ok(groups)
}
