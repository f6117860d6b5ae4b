//! Names of initiators in requests: prepared before they are proposed, so that the access list
//! holds the form in which they are compared.

use holdfast_config::state::Front;
use holdfast_name::{IscsiName, NameError};

use crate::problem::{Problem, ProblemKind};

/// Names to put on an access list.
pub(crate) fn allowed(names: &[String]) -> Result<Vec<String>, Problem> {
    let prepared = names.iter().map(|name| {
        let prepared = IscsiName::new(name.trim());
        prepared
            .map(|prepared| prepared.to_string())
            .map_err(|error| no_name(name, error))
    });
    prepared.collect()
}

/// Names to take off an access list, in every spelling that the list has.
///
/// A list may have what is no name from before names were checked: that can be taken off too.
pub(crate) fn denied(names: &[String], front: &Front) -> Result<Vec<String>, Problem> {
    let mut denied = Vec::new();
    for name in names {
        let stored = front.stored_spellings(name.trim());
        if stored.is_empty() {
            denied.extend(allowed(std::slice::from_ref(name))?);
        }
        denied.extend(stored);
    }
    Ok(denied)
}

fn no_name(name: &str, error: NameError) -> Problem {
    Problem::new(
        ProblemKind::Invalid,
        format!("{name:?} is no name of an initiator: {error}"),
        "give the name that the initiator shows, such as iqn.1993-08.org.debian:01:abc",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_listed_as_they_are_compared_and_what_is_none_is_refused() {
        let names = |list: &[&str]| {
            list.iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let spelled = names(&[" IQN.1993-08.org.Debian:01:ABC ", "eui.02004567A425678D"]);
        let prepared = names(&["iqn.1993-08.org.debian:01:abc", "eui.02004567a425678d"]);
        assert_eq!(allowed(&spelled).unwrap(), prepared);
        assert_eq!(denied(&spelled, &Front::default()).unwrap(), prepared);
        for odd in [
            "",
            "db",
            "iqn.1993-08.org.debian:01 abc",
            "iqn.1993-08.org.debian:a_b",
        ] {
            let problem = allowed(&names(&[odd])).unwrap_err();
            assert_eq!(problem.kind, ProblemKind::Invalid, "{odd:?}");
        }
    }

    #[test]
    fn what_is_no_name_can_be_taken_off_a_list_that_has_it() {
        let front = Front {
            initiators: Some(["iqn.1993-08.org.debian:a_b".to_owned()].into()),
            ..Front::default()
        };
        let odd = ["iqn.1993-08.org.debian:a_b".to_owned()];
        assert_eq!(denied(&odd, &front).unwrap(), odd);
    }
}
