//! Administration: through the REST API of any node, or of a stopped node's directory.

mod balance;
pub(crate) mod cluster;
mod copies;
mod draining;
mod moving;
pub(crate) mod node;
pub(crate) mod store;
pub(crate) mod volume;

use std::future::Future;
use std::io::{BufRead, IsTerminal};
use std::time::Duration;

use holdfast_api::{Client, ClientError};

use crate::cli::ApiArgs;
use crate::failure::Failure;
use crate::output::Listing;
use crate::standard;

/// Longer than the API's own limits, so that its answer says more than a time-out here.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs `command` with a client of the API.
fn with_client<T, F>(api: &ApiArgs, command: impl FnOnce(Client) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let client = Client::new(&api.url(), LIMIT)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::of)?;
    let outcome = runtime.block_on(command(client));
    // A name server that does not answer holds a thread for longer than the command waits.
    runtime.shutdown_background();
    outcome
}

/// Entries that the API gives at once, at most.
const PAGE_MAX: u64 = 1000;

/// A page's entries, and the cursor of the next one.
type Page<T> = (Vec<T>, Option<String>);

/// Prints a listing page by page, up to `limit` entries. `fetch` gets the size of a page and a
/// cursor, and answers a page's entries and the next cursor.
async fn list_pages<T: serde::Serialize>(
    mut listing: Listing,
    limit: Option<u64>,
    mut fetch: impl AsyncFnMut(u64, Option<String>) -> Result<Page<T>, ClientError>,
    row: impl Fn(&T) -> Vec<String>,
) -> Result<(), Failure> {
    let mut left = limit.unwrap_or(u64::MAX);
    let mut cursor = None;
    loop {
        let (entries, next) = fetch(left.min(PAGE_MAX), cursor).await?;
        left = left.saturating_sub(entries.len() as u64);
        if listing.page(&entries, &row)?.is_break() {
            return Ok(());
        }
        let more = next.is_some();
        cursor = next;
        if more && left > 0 {
            continue;
        }
        let shown = listing.end()?;
        if more {
            standard::tell(&format!("{shown} are shown; there are more"));
        }
        return Ok(());
    }
}

/// Lines of a fact sheet: a name and a value each, empty values left out.
fn facts(facts: Vec<(&'static str, String)>) -> crate::output::Rows {
    crate::output::Rows {
        columns: vec!["property", "value"],
        rows: facts
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| vec![name.to_owned(), value])
            .collect(),
    }
}

/// The word with which the API names a value.
fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word.replace('-', " "),
        Ok(other) => other.to_string(),
        Err(_) => "?".into(),
    }
}

/// Lets the operator type `answer` before something that cannot be undone.
fn confirm(what: &str, question: &str, answer: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        let text = format!("{what}: say --yes where nobody can be asked");
        return Err(Failure::Usage(text));
    }
    standard::write_all(standard::error(), question.as_bytes()).map_err(|error| {
        Failure::Failed(format!("nothing was done: nobody can be asked: {error}"))
    })?;
    let mut typed = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut typed)
        .map_err(Failure::of)?;
    if typed.trim() == answer {
        Ok(())
    } else {
        Err(Failure::Failed("nothing was done".into()))
    }
}
