//! How initiators reach a volume: who may log in, with which secrets, and where.
//!
//! Time is the proposers': a deadline is an absolute time that came in a change, and whoever lets
//! an initiator in compares it with its own clock. Once the leader's clock has passed it, the
//! leader says so (`EndGrace`): what has ended stays ended when clocks go back.

use std::collections::BTreeSet;
use std::rc::Rc;

use holdfast_name::prepare_stored;
use holdfast_wire::VolumeId;
use serde::{Deserialize, Serialize};

use super::apply::SlicesAtFirst;
use super::change::{Outcome, Refusal, VolumeSpec};
use super::records::{Chap, ClusterState, TokenRecord};
use super::slices::{SharedMap, SharedSet};

/// Most initiators on one volume's access list: it is config state, in memory on every node.
pub const INITIATORS_MAX: usize = 256;
/// Most earlier secrets of a volume that are valid at once.
pub(super) const RETIRING_MAX: usize = 4;
/// Longest iSCSI name in bytes (RFC 7143 4.2.7.1).
const NAME_BYTES_MAX: usize = 223;

/// See the module's header. The default is that of a new volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Front {
    /// iSCSI names, in lower case, of the initiators that may log in. `None` lets everyone in who
    /// has the credentials; nobody at all gets in while the list is empty.
    pub initiators: Option<BTreeSet<String>>,
    /// Whether a login at another node is sent to the owner.
    pub redirect_to_owner: bool,
    /// Number of the volume's present secret; the first one is 0.
    pub secret_number: u64,
    /// Earlier secrets that are still good for logins.
    pub retiring: Vec<RetiringSecret>,
    /// Sessions that used a secret before this one have to end.
    pub oldest_secret: u64,
}

static DEFAULT: Front = Front {
    initiators: None,
    redirect_to_owner: false,
    secret_number: 0,
    retiring: Vec::new(),
    oldest_secret: 0,
};

/// A secret that has been replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiringSecret {
    /// Its number.
    pub number: u64,
    /// The credentials.
    pub chap: Chap,
    /// Until when they are good for logins, in milliseconds since the Unix epoch.
    pub until_unix_ms: u64,
}

/// What is to be different. The parts take effect in this order, or none of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontChange {
    /// Drops the access list.
    pub anyone: bool,
    /// Puts these on the access list, which comes into being if there is none.
    pub allow: Vec<String>,
    /// Takes these off the access list.
    pub deny: Vec<String>,
    /// Whether a login at another node is sent to the owner.
    pub redirect_to_owner: Option<bool>,
    /// Voids every secret but the present one, and ends the sessions that used one.
    pub revoke_old_secrets: bool,
}

impl Front {
    /// Whether the initiator with this name may log in, as far as its name goes.
    pub fn admits(&self, initiator: &str) -> bool {
        let initiator = prepare_stored(initiator);
        self.initiators.as_ref().is_none_or(|allowed| {
            allowed.contains(&*initiator) || Self::spellings(allowed, &initiator).next().is_some()
        })
    }

    /// How the access list spells a name: lists from before names were prepared
    /// ([`holdfast_name`]) may have it in several ways.
    pub fn stored_spellings(&self, initiator: &str) -> Vec<String> {
        let initiator = prepare_stored(initiator);
        let allowed = self.initiators.iter();
        let stored = allowed.flat_map(|allowed| Self::spellings(allowed, &initiator));
        stored.cloned().collect()
    }

    fn spellings<'a>(
        allowed: &'a BTreeSet<String>,
        prepared: &str,
    ) -> impl Iterator<Item = &'a String> {
        allowed
            .iter()
            .filter(move |stored| *prepare_stored(stored) == *prepared)
    }

    /// Earlier secrets that are good for a login at this time.
    pub fn retiring_at(&self, now_unix_ms: u64) -> impl Iterator<Item = &RetiringSecret> {
        let valid = move |secret: &&RetiringSecret| secret.until_unix_ms > now_unix_ms;
        self.retiring.iter().filter(valid)
    }

    fn changed(&self, change: &FrontChange) -> Result<Self, Refusal> {
        let mut front = self.clone();
        if change.anyone {
            front.initiators = None;
        }
        for name in &change.allow {
            let allowed = front.initiators.get_or_insert_default();
            allowed.insert(initiator_name(name)?);
            if allowed.len() > INITIATORS_MAX {
                return Err(Refusal::TooManyInitiators);
            }
        }
        for name in &change.deny {
            let allowed = front.initiators.as_mut().ok_or(Refusal::NoAccessList)?;
            allowed.remove(&initiator_name(name)?);
        }
        if let Some(redirect) = change.redirect_to_owner {
            front.redirect_to_owner = redirect;
        }
        if change.revoke_old_secrets {
            front.retiring.clear();
            front.oldest_secret = front.secret_number;
        }
        Ok(front)
    }
}

/// How initiators reach volumes, where that is not the default.
#[derive(Clone, Default)]
pub struct Fronts {
    records: SharedMap<VolumeId, Rc<Front>>,
    /// When each retiring secret ends; always that of the records.
    ends: SharedSet<(u64, VolumeId)>,
}

impl Fronts {
    /// How initiators reach a volume.
    pub fn get(&self, volume: VolumeId) -> &Front {
        self.records.get(&volume).map_or(&DEFAULT, Rc::as_ref)
    }

    /// Those that are not the default, from one volume on.
    pub(super) fn from(&self, first: VolumeId) -> impl Iterator<Item = (VolumeId, &Front)> {
        let found = self.records.range(first..);
        found.map(|(volume, front)| (*volume, &**front))
    }

    pub(super) fn set(&mut self, volume: VolumeId, front: Front) {
        self.remove(volume);
        if front == DEFAULT {
            return;
        }
        for secret in &front.retiring {
            self.ends.insert((secret.until_unix_ms, volume));
        }
        self.records.insert(volume, Rc::new(front));
    }

    pub(super) fn remove(&mut self, volume: VolumeId) {
        let Some(front) = self.records.remove(&volume) else {
            return;
        };
        for secret in &front.retiring {
            self.ends.remove(&(secret.until_unix_ms, volume));
        }
    }

    /// The volume with the retiring secret that ends first, and when that is.
    fn next_end(&self) -> Option<(u64, VolumeId)> {
        self.ends.get_min().copied()
    }
}

impl PartialEq for Fronts {
    fn eq(&self, other: &Self) -> bool {
        self.records.ptr_eq(&other.records) || self.records == other.records
    }
}

impl Eq for Fronts {}

impl std::fmt::Debug for Fronts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.records.fmt(formatter)
    }
}

impl ClusterState {
    /// How initiators reach a volume.
    pub fn front(&self, volume: VolumeId) -> &Front {
        self.fronts.get(volume)
    }

    pub(super) fn create_volume_with(
        &mut self,
        spec: VolumeSpec,
        change: &FrontChange,
    ) -> Result<Outcome, Refusal> {
        let front = DEFAULT.changed(change)?;
        let outcome = self.create_volume(spec)?;
        if let Outcome::Created(volume) = outcome {
            self.fronts.set(volume, front);
        }
        Ok(outcome)
    }

    pub(super) fn create_thin_volume(
        &mut self,
        spec: VolumeSpec,
        change: &FrontChange,
    ) -> Result<Outcome, Refusal> {
        let front = DEFAULT.changed(change)?;
        self.check_room()?;
        let volume = self.create_with_slices(spec, SlicesAtFirst::Anchor)?;
        self.fronts.set(volume, front);
        Ok(Outcome::Created(volume))
    }

    pub(super) fn change_front(
        &mut self,
        volume: VolumeId,
        change: &FrontChange,
    ) -> Result<Outcome, Refusal> {
        if !self.volumes.contains_key(&volume) {
            return Err(Refusal::VolumeUnknown(volume));
        }
        let front = self.front(volume).changed(change)?;
        self.fronts.set(volume, front);
        Ok(Outcome::Done)
    }

    pub(super) fn rotate_secret(
        &mut self,
        volume: VolumeId,
        chap: Chap,
        now_unix_ms: u64,
        old_until_unix_ms: u64,
        revoke: bool,
    ) -> Result<Outcome, Refusal> {
        let mut front = self.front(volume).clone();
        let record = self
            .volumes
            .get(&volume)
            .ok_or(Refusal::VolumeUnknown(volume))?;
        let old = record.chap.clone().ok_or(Refusal::NoSecret)?;
        front
            .retiring
            .retain(|secret| secret.until_unix_ms > now_unix_ms);
        if revoke {
            front.retiring.clear();
        } else if old_until_unix_ms > now_unix_ms {
            if front.retiring.len() >= RETIRING_MAX {
                return Err(Refusal::TooManySecrets);
            }
            front.retiring.push(RetiringSecret {
                number: front.secret_number,
                chap: old,
                until_unix_ms: old_until_unix_ms,
            });
        }
        self.volumes
            .update(volume, |record| record.chap = Some(chap));
        front.secret_number += 1;
        if revoke {
            front.oldest_secret = front.secret_number;
        }
        self.fronts.set(volume, front);
        Ok(Outcome::Done)
    }

    /// What has run out by this clock is over, also if clocks go back.
    pub(super) fn end_grace(&mut self, now_unix_ms: u64) -> Result<Outcome, Refusal> {
        let over = |until_unix_ms: u64| until_unix_ms <= now_unix_ms;
        self.forget_tokens(now_unix_ms);
        while let Some((_, volume)) = self.fronts.next_end().filter(|(end, _)| over(*end)) {
            let mut front = self.front(volume).clone();
            front.retiring.retain(|secret| !over(secret.until_unix_ms));
            self.fronts.set(volume, front);
        }
        Ok(Outcome::Done)
    }

    /// Join tokens are few: an operator makes each of them.
    pub(super) fn forget_tokens(&mut self, now_unix_ms: u64) {
        let over = |token: &TokenRecord| token.expires_unix_ms <= now_unix_ms;
        let tokens = self.tokens.iter().filter(|(_, token)| over(token));
        let tokens: Vec<[u8; 32]> = tokens.map(|(hash, _)| *hash).collect();
        for hash in tokens {
            self.tokens.remove(&hash);
        }
    }

    /// When the next secret or join token runs out, in milliseconds since the Unix epoch.
    pub fn next_end_unix_ms(&self) -> Option<u64> {
        let secret = self.fronts.next_end().map(|(end, _)| end);
        let tokens = self.tokens.values().map(|token| token.expires_unix_ms);
        tokens.chain(secret).min()
    }
}

/// The form in which names are stored. Names are prepared before they are proposed; what is checked
/// here stays as it is, so that an entry of the log has the same effect on every node and in every
/// version.
fn initiator_name(name: &str) -> Result<String, Refusal> {
    let lower = name.trim().to_lowercase();
    let is_name = ["iqn.", "eui.", "naa."]
        .iter()
        .any(|kind| lower.len() > kind.len() && lower.starts_with(kind));
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == ',';
    if is_name && lower.len() <= NAME_BYTES_MAX && !lower.contains(odd) {
        Ok(lower)
    } else {
        Err(Refusal::InitiatorInvalid(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Change;
    use super::*;

    const NAME: &str = "iqn.2026-11.io.holdfast:a";

    fn allow(names: &[&str]) -> FrontChange {
        FrontChange {
            allow: names.iter().map(|name| (*name).to_owned()).collect(),
            ..FrontChange::default()
        }
    }

    fn deny(name: &str) -> FrontChange {
        FrontChange {
            deny: vec![name.to_owned()],
            ..FrontChange::default()
        }
    }

    #[test]
    fn a_list_admits_whom_it_names_and_nobody_once_it_is_empty() {
        assert!(DEFAULT.admits(NAME));
        let front = DEFAULT
            .changed(&allow(&["IQN.2026-11.io.holdfast:A"]))
            .unwrap();
        assert!(front.admits(NAME) && front.admits("iqn.2026-11.IO.holdfast:a"));
        assert!(!front.admits("iqn.2026-11.io.holdfast:b"));
        let front = front.changed(&deny(NAME)).unwrap();
        assert!(
            !front.admits(NAME),
            "taking the last one off lets nobody in"
        );
        let anyone = FrontChange {
            anyone: true,
            ..FrontChange::default()
        };
        assert_eq!(front.changed(&anyone), Ok(DEFAULT.clone()));
        assert_eq!(DEFAULT.changed(&deny(NAME)), Err(Refusal::NoAccessList));
    }

    #[test]
    fn a_list_from_before_names_were_prepared_is_compared_as_prepared() {
        let composed = "iqn.2026-11.example:z\u{fc}rich";
        let decomposed = "iqn.2026-11.example:zu\u{308}rich";
        let odd = "iqn.2026-11.example:a_b";
        let front = DEFAULT.changed(&allow(&[decomposed, odd])).unwrap();
        assert!(front.admits(composed) && front.admits(decomposed));
        assert_eq!(front.stored_spellings(composed), [decomposed]);
        assert_eq!(front.stored_spellings(odd), [odd], "it can be taken off");
        assert!(front.stored_spellings(NAME).is_empty());
    }

    #[test]
    fn what_has_run_out_stays_over_when_clocks_go_back() {
        let mut state = super::super::tests::cluster();
        let volume = VolumeId(1);
        let chap = |secret: &str| Chap {
            username: "db".into(),
            secret: secret.into(),
            mutual: None,
        };
        let first = Some(chap("first"));
        state.volumes.update(volume, |record| record.chap = first);
        for (secret, old_until_unix_ms) in [("second", 2_000), ("third", 9_000)] {
            state.apply(Change::RotateSecret {
                volume,
                chap: chap(secret),
                now_unix_ms: 1_000,
                old_until_unix_ms,
                revoke: false,
            });
        }
        for (token, expires_unix_ms) in [(1, 2_500), (2, 9_000)] {
            state.apply(Change::AddToken {
                secret_hash: [token; 32],
                expires_unix_ms,
            });
        }
        assert_eq!(state.next_end_unix_ms(), Some(2_000));
        let good = |state: &ClusterState, now_unix_ms| {
            let front = state.front(volume);
            let good = front
                .retiring_at(now_unix_ms)
                .map(|s| s.chap.secret.clone());
            good.collect::<Vec<_>>()
        };
        assert_eq!(good(&state, 1_500), ["first", "second"]);
        let change = Change::EndGrace { now_unix_ms: 2_500 };
        assert_eq!(state.apply(change), Outcome::Done);
        assert_eq!(good(&state, 0), ["second"], "the clock of 1970");
        assert_eq!(state.next_end_unix_ms(), Some(9_000));
        let admission = |token| {
            Change::Admit(super::super::Admission {
                secret_hash: [token; 32],
                uuid: [77; 16],
                link_address: String::new(),
                now_unix_ms: 0,
            })
        };
        let refused = Outcome::Refused(Refusal::TokenUnknown);
        assert_eq!(state.apply(admission(1)), refused);
        state.apply(Change::EndGrace { now_unix_ms: 9_000 });
        assert_eq!(good(&state, 0), Vec::<String>::new());
        assert_eq!(state.next_end_unix_ms(), None);
        assert_eq!(state.apply(admission(2)), refused);
    }

    #[test]
    fn names_that_no_initiator_can_have_are_refused() {
        for wrong in [
            "",
            "iqn.",
            "db",
            "iqn.a b",
            "iqn.a,b",
            "iqn.a\0",
            &"iqn.x".repeat(50),
        ] {
            let refused = DEFAULT.changed(&allow(&[NAME, wrong]));
            assert_eq!(refused, Err(Refusal::InitiatorInvalid(wrong.to_owned())));
        }
        let many: Vec<String> = (0..=INITIATORS_MAX).map(|n| format!("iqn.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(
            DEFAULT.changed(&allow(&many)),
            Err(Refusal::TooManyInitiators)
        );
    }
}
