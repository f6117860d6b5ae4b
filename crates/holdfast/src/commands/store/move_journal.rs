//! `holdfast store move-journal`

use crate::cli::MoveJournalArgs;
use crate::failure::Failure;
use crate::node::move_journal;

pub(super) async fn run(args: &MoveJournalArgs) -> Result<(), Failure> {
    let said = move_journal(&args.data, &args.to, args.force).await?;
    println!("{said}");
    Ok(())
}
