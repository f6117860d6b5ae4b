//! Names and secrets for CHAP, drawn from the runtime.

use holdfast_config::state::Chap;
use holdfast_runtime::Runtime;

use crate::types::{Authentication, ChapCredentials};

/// 64 characters, so that each carries six bits; none means anything to a shell, in a
/// configuration file or in a URL's user part, or ends a word on a double click.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.";

/// 96 bits, the least that RFC 7143 12.1.3 asks for, and the most that some initiators take.
const SECRET_CHARACTERS: usize = 16;

/// Fresh credentials for a volume; `None` where nobody has to prove anything.
pub(crate) fn credentials(
    runtime: &Runtime,
    volume_name: &str,
    authentication: Authentication,
) -> Option<Chap> {
    let mutual = match authentication {
        Authentication::None => return None,
        Authentication::Chap => None,
        Authentication::MutualChap => Some((format!("{volume_name}-target"), secret(runtime))),
    };
    Some(Chap {
        username: volume_name.to_owned(),
        secret: secret(runtime),
        mutual,
    })
}

pub(crate) fn shown(chap: &Chap) -> ChapCredentials {
    let (target_username, target_secret) = chap.mutual.clone().unzip();
    ChapCredentials {
        username: chap.username.clone(),
        secret: chap.secret.clone(),
        target_username,
        target_secret,
    }
}

fn secret(runtime: &Runtime) -> String {
    let mut bytes = [0; SECRET_CHARACTERS];
    runtime.random_bytes(&mut bytes);
    bytes
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 64)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_have_96_bits_in_16_plain_characters() {
        let distinct: std::collections::BTreeSet<_> = ALPHABET.iter().collect();
        assert_eq!(distinct.len(), 64);
        holdfast_runtime::host::run(async |runtime| {
            let chap = credentials(&runtime, "db", Authentication::MutualChap).unwrap();
            let (name, target_secret) = chap.mutual.clone().unwrap();
            assert_eq!((chap.username.as_str(), name.as_str()), ("db", "db-target"));
            assert_eq!((chap.secret.len(), target_secret.len()), (16, 16));
            // RFC 7143 12.1.3: the two secrets must differ.
            assert_ne!(chap.secret, target_secret);
            assert_eq!(credentials(&runtime, "db", Authentication::None), None);
        });
    }
}
